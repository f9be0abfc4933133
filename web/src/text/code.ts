// Highlighting with the few languages that reasoning models write most.
import hljs from 'highlight.js/lib/core'
import bash from 'highlight.js/lib/languages/bash'
import cpp from 'highlight.js/lib/languages/cpp'
import css from 'highlight.js/lib/languages/css'
import diff from 'highlight.js/lib/languages/diff'
import go from 'highlight.js/lib/languages/go'
import java from 'highlight.js/lib/languages/java'
import javascript from 'highlight.js/lib/languages/javascript'
import json from 'highlight.js/lib/languages/json'
import latex from 'highlight.js/lib/languages/latex'
import python from 'highlight.js/lib/languages/python'
import rust from 'highlight.js/lib/languages/rust'
import sql from 'highlight.js/lib/languages/sql'
import typescript from 'highlight.js/lib/languages/typescript'
import xml from 'highlight.js/lib/languages/xml'
import yaml from 'highlight.js/lib/languages/yaml'

const languages = { bash, cpp, css, diff, go, java, javascript, json, latex, python, rust, sql, typescript, xml, yaml }
for (const [name, language] of Object.entries(languages)) hljs.registerLanguage(name, language)

/** A block longer than this stays plain: colour is not worth a stalled page. */
const TOO_LONG = 50_000

/** Colours the text of `code` in place. The highlighter escapes the text itself. */
export function highlight(code: HTMLElement, language: string): void {
  const text = code.textContent ?? ''
  if (text.length > TOO_LONG || !hljs.getLanguage(language)) return
  code.innerHTML = hljs.highlight(text, { language, ignoreIllegals: true }).value
}
