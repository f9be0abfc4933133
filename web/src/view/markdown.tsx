import { useLayoutEffect, useRef } from 'preact/hooks'
import { language, t } from '../i18n'
import { Blocks } from '../text/blocks'
import { renderBlock } from '../text/markdown'

/** So much of a frame may go into new blocks; the rest of a long text follows in the frames after it. */
const BUDGET_MS = 12
/** What waits is put into one node up to so many letters: each costs a pass of the sanitiser and a place in the layout. */
const TOGETHER = 3000

/**
 * Markdown that may still grow. Finished blocks are rendered once, into nodes of their own; only the last one, which is
 * open, is rendered again as text arrives.
 */
export function Markdown({ text, live = false }: { text: string; live?: boolean }) {
  return <Grown key={language.value} text={text} live={live} />
}

function Grown({ text, live }: { text: string; live: boolean }) {
  const host = useRef<HTMLDivElement>(null)
  const state = useRef({ blocks: new Blocks(), done: 0, nodes: 0, openText: '', openDone: false, frame: 0 })

  useLayoutEffect(() => {
    const at = state.current
    const root = host.current!
    if (at.blocks.update(text)) {
      root.replaceChildren()
      at.done = at.nodes = 0
      at.openText = ''
    }
    const fill = () => {
      const until = performance.now() + BUDGET_MS
      at.frame = 0
      const { finished, open } = at.blocks
      while (at.done < finished.length) {
        let text = finished[at.done++]
        while (at.done < finished.length && text.length < TOGETHER) text += finished[at.done++]
        set(root, at.nodes++, text, true)
        at.openText = ''
        if (performance.now() > until) {
          at.frame = requestAnimationFrame(fill)
          return
        }
      }
      if (open === at.openText && at.openDone === !live) return
      at.openText = open
      at.openDone = !live
      if (open.trim() === '') root.children[at.nodes]?.remove()
      else set(root, at.nodes, open, !live)
    }
    if (at.frame === 0) fill()
    return undefined
  }, [text, live])

  useLayoutEffect(() => () => cancelAnimationFrame(state.current.frame), [])

  return <div class="markdown" ref={host} onClick={copyCode} />
}

function set(root: HTMLElement, index: number, text: string, finished: boolean): void {
  let block = root.children[index]
  if (block === undefined) {
    block = document.createElement('div')
    block.className = 'block'
    root.append(block)
  }
  block.replaceChildren(renderBlock(text, finished))
}

function copyCode(event: MouseEvent): void {
  const button = (event.target as Element).closest<HTMLButtonElement>('.copy-code')
  if (button === null) return
  const code = button.closest('.code')!.querySelector('code')!
  void copy(code.textContent ?? '').then(() => {
    button.textContent = t('copied')
    setTimeout(() => (button.textContent = t('copy')), 1500)
  })
}

export async function copy(text: string): Promise<void> {
  if (navigator.clipboard !== undefined) return navigator.clipboard.writeText(text)
  // Over plain http from another machine (a phone in the same house) browsers offer only the old way.
  const area = document.createElement('textarea')
  area.value = text
  area.className = 'hidden'
  ;(document.querySelector('dialog[open]') ?? document.body).append(area)
  area.select()
  document.execCommand('copy')
  area.remove()
}
