// Finding LaTeX in prose. Pure functions; markdown.ts hooks them into the parser.

export interface Found {
  raw: string
  tex: string
  display: boolean
}

/**
 * The formula at the very start of `text`, or null. `before` is the character in front of it.
 *
 * A single dollar opens a formula only where it cannot be a price or a shell variable: not after a letter or digit, not
 * before a space; it closes only after a non-space and not before a letter or digit ("$5-$10", "$HOME/$PATH"). What
 * begins with a digit and goes on in words is money, too: "$5 (about 4 US$)".
 */
export function formulaAt(text: string, before = ''): Found | null {
  if (text.startsWith('$$')) return between(text, '$$', '$$', true)
  if (text.startsWith('\\[')) return between(text, '\\[', '\\]', true)
  if (text.startsWith('\\(')) return between(text, '\\(', '\\)', false)
  if (!text.startsWith('$') || /[\p{L}\p{N}$\\]/u.test(before)) return null
  const match = /^\$(?!\s)((?:\\[^\n]|[^$\\\n]|\n(?!\s*\n))+?)(?<!\s)\$(?![\p{L}\p{N}$])/u.exec(text)
  if (match === null) return null
  const tex = match[1]
  const money = /^[\d.,]+[^\\]*\s[^\\]*?(?<!\\)\p{L}{2,}/u.test(tex) && !/[\\^_=]/.test(tex)
  return money ? null : { raw: match[0], tex, display: false }
}

function between(text: string, open: string, close: string, display: boolean): Found | null {
  const end = text.indexOf(close, open.length)
  if (end < 0) return null
  const tex = text.slice(open.length, end)
  if (tex.trim() === '' || /\n\s*\n/.test(tex)) return null // LaTeX itself forbids a blank line in a formula
  return { raw: text.slice(0, end + close.length), tex: tex.trim(), display }
}

/** Where the next formula might begin, for the parser to stop at; -1 where none can. */
export function nextFormula(text: string): number {
  return text.search(/\$|\\[([]/)
}
