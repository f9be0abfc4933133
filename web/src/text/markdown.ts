// One block of Markdown into DOM nodes that are safe to show, whatever the model wrote.
//
// The order matters: marked makes HTML, DOMPurify cleans that output down to a short list of tags and attributes, and
// only then do KaTeX and the highlighter work, on text alone. KaTeX builds nodes (not HTML), so its styles are set
// through the CSSOM and the page needs no 'unsafe-inline'.
import DOMPurify from 'dompurify'
import katex from 'katex'
import { Marked, type TokenizerAndRendererExtension, type Tokens } from 'marked'
import { t } from '../i18n'
import { highlight } from './code'
import { formulaAt, nextFormula } from './math'

const escape = (text: string) =>
  text.replace(/[&<>"']/g, (c) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;' })[c]!)

// The sanitiser lets no attribute through that could carry a formula, so formulas wait here and are found by number.
let formulas: { tex: string; display: boolean }[] = []

function placeholder({ tex, display }: { tex: string; display: boolean }): string {
  formulas.push({ tex, display })
  return `<span class="formula">${formulas.length - 1}</span>`
}

interface FormulaToken extends Tokens.Generic {
  tex: string
  display: boolean
}

const render = (token: Tokens.Generic) => placeholder(token as FormulaToken)

const inlineFormula: TokenizerAndRendererExtension = {
  name: 'formula',
  level: 'inline',
  start: (text) => nextFormula(text),
  tokenizer(text, tokens) {
    const found = formulaAt(text, tokens.at(-1)?.raw.at(-1))
    return found === null ? undefined : { type: 'formula', ...found }
  },
  renderer: render,
}

const displayFormula: TokenizerAndRendererExtension = {
  name: 'displayFormula',
  level: 'block',
  start: (text) => /^ {0,3}(?:\$\$|\\\[)/m.exec(text)?.index,
  tokenizer(text) {
    const indent = /^ {0,3}/.exec(text)![0].length
    const found = formulaAt(text.slice(indent))
    if (!found?.display) return undefined
    const raw = text.slice(0, indent + found.raw.length)
    if (!/^\s*(?:\n|$)/.test(text.slice(raw.length))) return undefined // prose goes on: an inline matter
    return { type: 'displayFormula', ...found, raw }
  },
  renderer: (token) => `<p>${render(token)}</p>`,
}

const marked = new Marked({
  gfm: true,
  extensions: [inlineFormula, displayFormula],
  renderer: {
    // What looks like HTML is what the model wrote, so it is shown. Only plain typography passes.
    html: ({ text }) => (/^<\/?(?:br|sub|sup|kbd|mark|u|s|b|i)\s*\/?>$/i.test(text.trim()) ? text : escape(text)),
    // A picture from elsewhere would tell its host that this chat was read; the address is shown in its place.
    image: ({ href, text }) => `<a href="${escape(href)}">${escape(text || href)}</a>`,
  },
})

const ALLOWED = {
  ALLOWED_TAGS: [
    ...'p br hr h1 h2 h3 h4 h5 h6 ul ol li blockquote pre code table thead tbody tr th td a em strong del'.split(' '),
    ...'sub sup kbd mark u s b i span input'.split(' '),
  ],
  ALLOWED_ATTR: ['href', 'class', 'align', 'start', 'type', 'checked', 'disabled'],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i, // asked of every attribute but these
  ADD_URI_SAFE_ATTR: ['align', 'start', 'type', 'checked', 'disabled'],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
}

DOMPurify.addHook('afterSanitizeAttributes', (node) => {
  if (node.tagName === 'A') {
    node.setAttribute('target', '_blank')
    node.setAttribute('rel', 'noopener noreferrer nofollow')
  }
  if (node.tagName === 'INPUT' && node.getAttribute('type') !== 'checkbox') node.remove()
  const name = node.getAttribute('class')
  if (name !== null && !/^(?:formula|language-[\w+#.-]{1,20})$/.test(name)) node.removeAttribute('class')
})

/** `finished`: no more text will come, so what is costly (colours) is worth doing. */
export function renderBlock(text: string, finished: boolean): DocumentFragment {
  formulas = []
  const html = marked.parse(text) as string
  const fragment = DOMPurify.sanitize(html, { ...ALLOWED, RETURN_DOM_FRAGMENT: true })
  for (const node of fragment.querySelectorAll<HTMLElement>('span.formula')) {
    const formula = formulas[Number(node.textContent)]
    if (formula !== undefined) setFormula(node, formula)
  }
  for (const pre of fragment.querySelectorAll('pre')) dressCode(pre, finished)
  for (const table of fragment.querySelectorAll('table')) {
    const frame = scrollable(document.createElement('div'), t('table'))
    frame.className = 'table'
    table.replaceWith(frame)
    frame.append(table)
  }
  for (const box of fragment.querySelectorAll('input')) box.setAttribute('aria-label', t('checkbox'))
  return fragment
}

/** A question as it was typed, with its formulas set; the rest stays plain text. */
export function renderQuestion(text: string): DocumentFragment {
  const fragment = document.createDocumentFragment()
  let plain = 0 // where the text begins that is not yet in the fragment
  for (let at = 0; at < text.length; ) {
    const next = nextFormula(text.slice(at))
    if (next < 0) break
    at += next
    const found = formulaAt(text.slice(at), text[at - 1])
    if (found === null) {
      at += text.startsWith('$$', at) ? 2 : 1
      continue
    }
    const node = document.createElement('span')
    node.className = 'formula'
    setFormula(node, found)
    fragment.append(text.slice(plain, at), node)
    plain = at += found.raw.length
  }
  fragment.append(text.slice(plain))
  return fragment
}

function setFormula(node: HTMLElement, formula: { tex: string; display: boolean }): void {
  node.textContent = ''
  katex.render(formula.tex, node, {
    displayMode: formula.display,
    throwOnError: false,
    trust: false,
    strict: 'ignore',
    maxExpand: 300,
    maxSize: 20,
  })
  if (formula.display) scrollable(node, t('formula')).classList.add('display')
}

function dressCode(pre: HTMLElement, finished: boolean): void {
  const code = pre.querySelector('code')
  if (code === null) return
  const language = /language-(\S+)/.exec(code.className)?.[1] ?? ''
  if (finished) highlight(code, language)
  scrollable(pre, t('code', { language }))
  const frame = document.createElement('div')
  frame.className = 'code'
  const head = document.createElement('div')
  head.className = 'code-head'
  const label = document.createElement('span')
  label.textContent = language
  const copy = document.createElement('button')
  copy.type = 'button'
  copy.className = 'copy-code'
  copy.textContent = t('copy')
  head.append(label, copy)
  pre.replaceWith(frame)
  frame.append(head, pre)
}

/** What may be wider than the page scrolls on its own, for the keyboard too. */
function scrollable(node: HTMLElement, label: string): HTMLElement {
  node.tabIndex = 0
  node.setAttribute('role', 'group')
  node.setAttribute('aria-label', label)
  return node
}
