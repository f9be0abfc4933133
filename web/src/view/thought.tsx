import { useLayoutEffect, useRef, useState } from 'preact/hooks'
import { depth, seconds, tokens } from '../format'
import { t } from '../i18n'
import type { Live } from '../live'
import { preferences } from '../preferences'
import { say } from '../state'
import type { Message } from '../types'
import { Depth, Icon, IconButton } from './icons'
import { copy, Markdown } from './markdown'
import { Clock } from './phase'

/** What the reader chose for a thought outlives the component, and beats every rule. */
const chosen = new Map<string, boolean>()

/** Open while it streams, folded at the first word of the answer, unless its reader decided otherwise. */
export function Thought({ message, live }: { message: Message; live: Live | undefined }) {
  const [, redraw] = useState(0)
  const text = live?.thought ?? message.thought ?? ''
  if (text.trim() === '') return null // models that do not think still send an empty thought
  const thinking = live?.phase === 'thinking'
  const open = chosen.get(message.id) ?? (thinking || (preferences.value.keepThoughts ?? false))
  const choose = (value: boolean) => {
    chosen.set(message.id, value)
    redraw((n) => n + 1)
  }
  const body = `thought-${message.id}`
  const length = thinking ? live!.tokens : message.usage?.reasoning_tokens
  return (
    <section class="thought" data-open={open} data-live={thinking}>
      <button type="button" class="thought-head" aria-expanded={open} aria-controls={body} onClick={() => choose(!open)}>
        <Depth zone={depth(length ?? text.length / 4)} />
        <span class="thought-title">
          <ThoughtTime message={message} live={live} />
        </span>
        {length ? <span class="thought-tokens">{tokens(length)}</span> : null}
        <Icon name="chevron" />
      </button>
      <div id={body} class="thought-body" hidden={!open}>
        {open && <Body text={text} live={thinking} />}
        {open && !thinking && (
          <div class="thought-foot">
            <button type="button" class="quiet" onClick={() => choose(false)}>
              {t('foldThought')}
            </button>
            <IconButton icon="copy" label={t('copyThought')} onClick={() => void copy(text).then(() => say(t('copied')))} />
          </div>
        )}
      </div>
    </section>
  )
}

function ThoughtTime({ message, live }: { message: Message; live: Live | undefined }) {
  if (live?.phase === 'thinking') {
    return (
      <>
        {t('thinking')} <Clock since={live.thoughtBegan ?? live.began} />
      </>
    )
  }
  const ms =
    message.thought_ms ?? (live?.thoughtBegan && live.thoughtEnded ? Math.max(0, live.thoughtEnded - live.thoughtBegan) : null)
  const line = ms === null ? t('thought') : t('thoughtFor', { time: seconds(ms) })
  return <>{message.answered_now ? `${line} · ${t('cutShort')}` : line}</>
}

/** While it streams, a window on the end of the thought that follows it down until the reader scrolls up. */
function Body({ text, live }: { text: string; live: boolean }) {
  const scroller = useRef<HTMLDivElement>(null)
  const pinned = useRef(true)
  useLayoutEffect(() => {
    const node = scroller.current!
    if (live && pinned.current) node.scrollTop = node.scrollHeight
  }, [text, live])
  const onScroll = () => {
    const node = scroller.current!
    pinned.current = node.scrollHeight - node.scrollTop - node.clientHeight < 40
  }
  return (
    <div
      ref={scroller}
      class="thought-text"
      onScroll={onScroll}
      {...(live ? { tabIndex: 0, role: 'group', 'aria-label': t('thought') } : {})}
    >
      <Markdown text={text} live={live} />
    </div>
  )
}

export function toggleThought(message: Message): void {
  document.querySelector<HTMLButtonElement>(`[aria-controls="thought-${CSS.escape(message.id)}"]`)?.click()
}
