// Cuts growing Markdown into blocks, so that only the last one has to be rendered again while text arrives.

/** Longer than this, an open block is cut in prose, so that one endless paragraph stays cheap as well. */
const LONG = 4000

export class Blocks {
  /** Finished blocks never change any more. */
  readonly finished: string[] = []
  /** The block that still grows. */
  open = ''
  private text = ''
  private at = new Scan()

  /** Takes all the text so far. What does not begin with the former text starts anew (then `true` is returned). */
  update(text: string): boolean {
    const anew = !text.startsWith(this.text)
    if (anew) {
      this.finished.length = 0
      this.at = new Scan()
      this.open = text
    } else {
      this.open += text.slice(this.text.length)
    }
    this.text = text
    for (let end = this.at.boundary(this.open); end > 0; end = this.at.boundary(this.open)) {
      this.finished.push(this.open.slice(0, end))
      this.open = this.open.slice(end)
      this.at = new Scan()
    }
    return anew
  }
}

/** How far the open block has been read; its whole lines are read once. */
class Scan {
  private start = 0 // of the first line that is not read
  private fence = '' // the marker of the code block that is open
  private inList = false
  private blank = false // the line before was blank
  private content = false

  /** Where the block that `text` begins with surely ends, or 0. */
  boundary(text: string): number {
    for (;;) {
      const newline = text.indexOf('\n', this.start)
      if (newline < 0) break // the last line may still grow: neither a fence nor blank is certain
      if (this.ends(text.slice(this.start, newline))) return this.start
      this.start = newline + 1
    }
    return this.fence === '' ? this.endsInLastLine(text) : 0
  }

  private ends(line: string): boolean {
    if (this.fence !== '') {
      if (closes(line, this.fence)) this.fence = ''
      return false
    }
    if (line.trim() === '') {
      this.blank = this.content
      return false
    }
    const marker = /^ {0,3}(?:[-*+]|\d{1,9}[.)])\s/.test(line)
    if (this.blank && !/^[ \t]/.test(line) && !(this.inList && marker)) return true
    if (this.start > LONG && !this.inList && !line.startsWith('|')) return true
    if (this.start > 4 * LONG && this.inList && marker && /^\S/.test(line)) return true // goes on as a second list
    if (marker) this.inList = true
    this.blank = false
    this.content = true
    this.fence = /^ {0,3}(`{3,}|~{3,})/.exec(line)?.[1] ?? ''
    return false
  }

  private endsInLastLine(text: string): number {
    const length = text.length - this.start
    // The next block has begun on the unfinished line, too, once its first character tells that it is no continuation.
    if (this.blank && length > 0 && !/[\s\-*+\d]/.test(text[this.start])) return this.start
    if (this.inList || length <= LONG || text[this.start] === '|') return 0
    // A long single line is cut behind a sentence or, failing that, a word; formulas and code rarely reach that far.
    const head = text.slice(this.start, this.start + LONG)
    const cut = Math.max(head.lastIndexOf('. '), head.lastIndexOf('。') - 1) + 2
    return this.start + (cut > LONG / 2 ? cut : head.lastIndexOf(' ') + 1 || LONG)
  }
}

function closes(line: string, fence: string): boolean {
  const match = /^ {0,3}(`{3,}|~{3,})\s*$/.exec(line)
  return match !== null && match[1][0] === fence[0] && match[1].length >= fence.length
}
