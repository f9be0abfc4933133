import { useEffect, useState } from 'preact/hooks'
import { seconds, tokens } from '../format'
import { t } from '../i18n'
import { liveOf } from '../live'
import { answerNow, mayAnswerNow, modelNamed, stop } from '../state'
import type { Message } from '../types'
import { Icon } from './icons'

/** Time since a moment, going on. Hidden from screen readers, which would read each tenth of a second. */
export function Clock({ since }: { since: number }) {
  const [now, tick] = useState(Date.now())
  useEffect(() => {
    const timer = setInterval(() => tick(Date.now()), 200)
    return () => clearInterval(timer)
  }, [])
  return (
    <span class="clock" aria-hidden="true">
      {seconds(Math.max(0, now - since))}
    </span>
  )
}

/** What a running answer is doing and how fast; `stoppable`: with a Stop of its own, where no composer has one. */
export function PhaseLine({ message, stoppable = false }: { message: Message; stoppable?: boolean }) {
  const live = liveOf(message.id)
  if (live === undefined) return null
  const offered = modelNamed(message.model)?.answer_now ?? false
  return (
    <div class="phase" data-phase={live.phase}>
      <span class="phase-light" aria-hidden="true" />
      <span class="phase-name">{t(live.phase)}</span>
      <span class="phase-numbers" aria-hidden="true">
        <Clock since={live.began} />
        {live.tokens > 0 && <span>{tokens(live.tokens)}</span>}
        {live.tokensPerSecond !== null && live.tokens > 1 && <span>{t('perSecond', { n: rate(live.tokensPerSecond) })}</span>}
      </span>
      <span class="phase-actions">
        {offered && live.phase === 'thinking' && (
          <button type="button" class="small" disabled={!mayAnswerNow(message)} onClick={() => void answerNow(message)}>
            <Icon name="surface" />
            {t('answerNow')}
          </button>
        )}
        {stoppable && (
          <button type="button" class="small" onClick={() => void stop(message)}>
            <Icon name="stop" />
            {t('stop')}
          </button>
        )}
      </span>
    </div>
  )
}

export const rate = (tokensPerSecond: number) => (tokensPerSecond < 10 ? tokensPerSecond.toFixed(1) : String(Math.round(tokensPerSecond)))
