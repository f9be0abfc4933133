// Cuts growing Markdown into blocks, so that only the last one has to be rendered again while text arrives.

/** Longer than this, an open block is cut in prose, so that one endless paragraph stays cheap as well. */
const LONG = 4000

export class Blocks {
  /** Finished blocks never change any more. */
  readonly finished: string[] = []
  /** The block that still grows. */
  open = ''
  private text = ''

  /** Takes all the text so far. What does not begin with the former text starts anew (then `true` is returned). */
  update(text: string): boolean {
    const anew = !text.startsWith(this.text)
    if (anew) {
      this.finished.length = 0
      this.open = text
    } else {
      this.open += text.slice(this.text.length)
    }
    this.text = text
    for (let end = boundary(this.open); end > 0; end = boundary(this.open)) {
      this.finished.push(this.open.slice(0, end))
      this.open = this.open.slice(end)
    }
    return anew
  }
}

/** Where the first block of `text` surely ends, or 0. */
function boundary(text: string): number {
  let fence = '' // the marker of the code block that is open
  let inList = false
  let start = 0
  let blank = false
  let content = false
  while (start < text.length) {
    const newline = text.indexOf('\n', start)
    if (newline < 0) break // the last line may still grow: neither a fence nor blank is certain
    const line = text.slice(start, newline)
    if (fence !== '') {
      if (closes(line, fence)) fence = ''
    } else if (line.trim() === '') {
      blank = content
    } else {
      const marker = /^ {0,3}(?:[-*+]|\d{1,9}[.)])\s/.test(line)
      if (blank && !/^[ \t]/.test(line) && !(inList && marker)) return start
      if (start > LONG && !inList && !line.startsWith('|')) return start
      if (start > 4 * LONG && inList && /^\S/.test(line) && marker) return start // goes on as a second list
      if (marker) inList = true
      blank = false
      content = true
      fence = /^ {0,3}(`{3,}|~{3,})/.exec(line)?.[1] ?? ''
    }
    start = newline + 1
  }
  // The next block has begun on the unfinished line, too, once its first character tells that it is no continuation.
  const rest = text.slice(start)
  if (fence === '' && blank && /^[^\s\-*+\d]/.test(rest)) return start
  // A long single line is cut behind a sentence or, failing that, a word; math and code spans rarely reach that far.
  if (fence === '' && !inList && rest.length > LONG && !rest.startsWith('|')) {
    const head = rest.slice(0, LONG)
    const cut = Math.max(head.lastIndexOf('. '), head.lastIndexOf('。') - 1) + 2
    return start + (cut > LONG / 2 ? cut : head.lastIndexOf(' ') + 1 || LONG)
  }
  return 0
}

function closes(line: string, fence: string): boolean {
  const match = /^ {0,3}(`{3,}|~{3,})\s*$/.exec(line)
  return match !== null && match[1][0] === fence[0] && match[1].length >= fence.length
}
