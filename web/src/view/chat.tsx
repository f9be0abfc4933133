import { useLayoutEffect, useRef, useState } from 'preact/hooks'
import { t } from '../i18n'
import { ask, chat, model, running, shown } from '../state'
import { route } from '../route'
import { Composer } from './composer'
import { Icon, Mark } from './icons'
import { Answer, Question } from './message'
import { silent } from './models'

export function Conversation() {
  const scroller = useRef<HTMLDivElement>(null)
  const inner = useRef<HTMLDivElement>(null)
  const atEnd = useRef(true)
  const [away, setAway] = useState(false)
  const fresh = route.value.id === null

  // Follows the end as the text grows, until the reader scrolls up; then it stays where they read.
  useLayoutEffect(() => {
    const node = scroller.current!
    const follow = new ResizeObserver(() => {
      if (atEnd.current) node.scrollTop = node.scrollHeight
    })
    follow.observe(inner.current!)
    return () => follow.disconnect()
  }, [])
  useLayoutEffect(() => {
    atEnd.current = true
    setAway(false)
    scroller.current!.scrollTop = scroller.current!.scrollHeight
  }, [chat.value?.id, shown.value.length])

  const onScroll = () => {
    const node = scroller.current!
    atEnd.current = node.scrollHeight - node.scrollTop - node.clientHeight < 60
    setAway(!atEnd.current)
  }

  return (
    <>
      <div class="scroll" ref={scroller} onScroll={onScroll}>
        <div class="conversation" ref={inner}>
          {fresh ? <Welcome /> : <h1 class="hidden">{chat.value?.title || t('untitled')}</h1>}
          {!fresh && chat.value?.settings.system && <p class="system-note">{t('hasSystem')}</p>}
          {shown.value.map((message) =>
            message.role === 'user' ? <Question key={message.id} message={message} /> : <Answer key={message.id} message={message} />,
          )}
        </div>
      </div>
      {away && (
        <button
          type="button"
          class="to-end"
          aria-label={t('toEnd')}
          title={t('toEnd')}
          data-running={running.value !== null}
          onClick={() => {
            const node = scroller.current!
            node.scrollTop = node.scrollHeight
          }}
        >
          <Icon name="down" />
        </button>
      )}
      <Composer />
    </>
  )
}

function Welcome() {
  const at = model.value
  return (
    <div class="welcome">
      <Mark />
      <h1>{t('welcome')}</h1>
      {at !== null && (
        <p>
          <strong>{at.name}</strong> · {at.ok ? at.about : at.error}
        </p>
      )}
      {at === null && silent().map((one) => <p key={one.name}>{one.error}</p>)}
      {at?.single_turn && <p class="hint">{t('singleTurn')}</p>}
      {at !== null && at.ok && at.examples.length > 0 && (
        <ul class="examples" aria-label={t('examples')}>
          {at.examples.map((example) => (
            <li key={example}>
              <button type="button" onClick={() => void ask(example)}>
                {example}
              </button>
            </li>
          ))}
        </ul>
      )}
    </div>
  )
}
