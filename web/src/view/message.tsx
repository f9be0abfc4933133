import { useLayoutEffect, useRef, useState } from 'preact/hooks'
import { count, dollars, seconds, tokens } from '../format'
import { t } from '../i18n'
import { liveOf } from '../live'
import { ask, branch, carryOn, judge, messages, modelNamed, regenerate, running, say } from '../state'
import { renderQuestion } from '../text/markdown'
import { siblings } from '../tree'
import type { Message } from '../types'
import { Icon, IconButton } from './icons'
import { copy, Markdown } from './markdown'
import { rate } from './phase'
import { Thought } from './thought'

export function Question({ message, plain = false }: { message: Message; plain?: boolean }) {
  const [editing, edit] = useState(false)
  const long = message.content.length > 1200 || message.content.split('\n').length > 14
  const [whole, showWhole] = useState(!long)
  if (editing) return <Edit message={message} close={() => edit(false)} />
  return (
    <article class="question" id={`m-${message.id}`} tabIndex={-1} aria-label={t('yourQuestion')}>
      <QuestionText text={message.content} cut={!whole} />
      {long && (
        <button type="button" class="quiet" aria-expanded={whole} onClick={() => showWhole(!whole)}>
          {whole ? t('showLess') : t('showAll')}
        </button>
      )}
      {!plain && (
        <div class="actions">
          <Branches message={message} />
          <IconButton class="edit-question" icon="edit" label={t('edit')} onClick={() => edit(true)} />
          <IconButton icon="copy" label={t('copyQuestion')} onClick={() => void copy(message.content).then(() => say(t('copied')))} />
        </div>
      )}
    </article>
  )
}

function QuestionText({ text, cut }: { text: string; cut: boolean }) {
  const node = useRef<HTMLDivElement>(null)
  useLayoutEffect(() => node.current!.replaceChildren(renderQuestion(text)), [text])
  return <div class="question-text" data-cut={cut} ref={node} />
}

function Edit({ message, close }: { message: Message; close: () => void }) {
  const [text, setText] = useState(message.content)
  const resend = async () => {
    if (text.trim() !== '' && (await ask(text, message.parent))) close()
  }
  return (
    <form
      class="question editing"
      onSubmit={(event) => {
        event.preventDefault()
        void resend()
      }}
    >
      <textarea
        aria-label={t('edit')}
        value={text}
        rows={Math.min(12, text.split('\n').length + 1)}
        ref={(node) => node?.focus()}
        onInput={(event) => setText(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key === 'Escape') {
            event.stopPropagation()
            close()
          } else if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
            event.preventDefault()
            void resend()
          }
        }}
      />
      <div class="actions">
        <span class="hint">{t('editHint')}</span>
        <button type="button" class="small" onClick={close}>
          {t('cancel')}
        </button>
        <button type="submit" class="small primary">
          {t('resend')}
        </button>
      </div>
    </form>
  )
}

export function Answer({ message, plain = false }: { message: Message; plain?: boolean }) {
  const live = message.status === 'running' ? liveOf(message.id) : undefined
  const text = live?.answer ?? message.content
  const name = modelNamed(message.model)?.name ?? message.model ?? ''
  return (
    <article class="answer" id={`m-${message.id}`} tabIndex={-1} aria-label={t('answerBy', { model: name })} aria-busy={live !== undefined}>
      <Thought message={message} live={live} />
      {text.trim() !== '' && <Markdown text={text} live={live !== undefined} />}
      {live !== undefined && live.phase !== 'thinking' && text.trim() === '' && <div class="waiting" aria-hidden="true" />}
      <Outcome message={message} empty={text.trim() === ''} />
      <Verdict message={message} asked={plain} />
      {message.status !== 'running' && <Footer message={message} plain={plain} />}
    </article>
  )
}

/** Why an answer is not whole. */
function Outcome({ message, empty }: { message: Message; empty: boolean }) {
  if (message.status === 'failed') {
    return (
      <p class="outcome bad">
        <strong>{t('failed')}</strong> {message.error}
      </p>
    )
  }
  if (message.status === 'stopped') return <p class="outcome">{t('stoppedLong')}</p>
  if (message.status === 'interrupted') return <p class="outcome">{t('interruptedLong')}</p>
  if (message.finish_reason === 'length') return <p class="outcome">{t('lengthLong')}</p>
  if (message.status === 'done' && empty) return <p class="outcome">{t('emptyAnswer')}</p>
  return null
}

const unknown: NonNullable<Message['verdict']> = { right: null, note: null, gold: null, task: null, by: 'user' }

/** Whether the answer is right; `asked`: where no scorer knows, the reader is. */
function Verdict({ message, asked }: { message: Message; asked: boolean }) {
  const verdict = message.verdict ?? (asked && message.status === 'done' ? unknown : null)
  if (verdict === null) return null
  const own = verdict.by === 'user' || verdict.right === null
  return (
    <div class="verdict" data-right={String(verdict.right)}>
      {verdict.right !== null && <Icon name={verdict.right ? 'check' : 'cross'} />}
      <span>
        <strong>{verdict.right === null ? t('noVerdict') : verdict.right ? t('rightAnswer') : t('wrongAnswer')}</strong>
        {verdict.right === false && verdict.gold !== null && <> · {t('goldIs', { gold: verdict.gold })}</>}
        {verdict.note && !['right', 'wrong'].includes(verdict.note) ? ` · ${verdict.note}` : ''}
      </span>
      {own && (
        <span class="judge">
          <button type="button" class="small" aria-pressed={verdict.right === true} onClick={() => void judge(message, verdict.right === true ? null : true)}>
            {t('rightAnswer')}
          </button>
          <button type="button" class="small" aria-pressed={verdict.right === false} onClick={() => void judge(message, verdict.right === false ? null : false)}>
            {t('wrongAnswer')}
          </button>
        </span>
      )}
    </div>
  )
}

function Footer({ message, plain }: { message: Message; plain: boolean }) {
  const [details, showDetails] = useState(false)
  const model = modelNamed(message.model)
  const cut = message.finish_reason === 'length' || message.status === 'stopped' || message.status === 'interrupted'
  const { usage, cost } = message
  const summary = [
    usage && tokens(usage.completion_tokens),
    message.tokens_per_second && t('perSecond', { n: rate(message.tokens_per_second) }),
    cost?.usd != null && dollars(cost.usd),
  ].filter(Boolean)
  return (
    <>
      <div class="actions">
        {!plain && <Branches message={message} />}
        <IconButton icon="copy" label={t('copyAnswer')} onClick={() => void copy(message.content).then(() => say(t('copied')))} />
        {!plain && <IconButton icon="redo" label={t('regenerate')} onClick={() => void regenerate(message)} disabled={running.value !== null} />}
        {!plain && cut && (model?.continue ?? true) && (
          <button type="button" class="small" onClick={() => void carryOn(message)} disabled={running.value !== null}>
            <Icon name="more" />
            {t('continue')}
          </button>
        )}
        <button type="button" class="meta" aria-expanded={details} onClick={() => showDetails(!details)} title={t('details')}>
          {summary.length > 0 ? summary.join(' · ') : t('details')}
        </button>
      </div>
      {details && <Details message={message} />}
    </>
  )
}

function Details({ message }: { message: Message }) {
  const { usage, cost } = message
  const rows: [string, string | null | undefined][] = [
    [t('model'), modelNamed(message.model)?.name ?? message.model],
    [t('promptTokens'), usage && t('ofWhichCached', { n: count(usage.prompt_tokens), hit: count(usage.prompt_cache_hit_tokens) })],
    [t('thoughtTokens'), usage && count(usage.reasoning_tokens)],
    [t('answerTokens'), usage && count(usage.completion_tokens - usage.reasoning_tokens)],
    [t('firstToken'), message.wait_ms === null ? null : seconds(message.wait_ms)],
    [t('inAll'), message.total_ms === null ? null : seconds(message.total_ms)],
    [t('cost'), cost?.usd == null ? null : dollars(cost.usd) + (cost.note ? ` (${cost.note})` : '')],
    [t('atR1'), cost?.r1_usd == null ? null : dollars(cost.r1_usd)],
  ]
  return (
    <dl class="details">
      {rows.map(
        ([name, value]) =>
          value && (
            <div key={name}>
              <dt>{name}</dt>
              <dd>{value}</dd>
            </div>
          ),
      )}
      {usage?.estimated && <p>{t('estimated')}</p>}
    </dl>
  )
}

function Branches({ message }: { message: Message }) {
  const all = siblings(messages.value, message)
  if (all.length < 2) return null
  const at = all.findIndex((one) => one.id === message.id)
  return (
    <span class="branches" role="group" aria-label={t('branches')}>
      <IconButton icon="left" label={t('previousBranch')} disabled={at === 0} onClick={() => branch(all[at - 1])} />
      <span>
        {at + 1}/{all.length}
      </span>
      <IconButton icon="right" label={t('nextBranch')} disabled={at === all.length - 1} onClick={() => branch(all[at + 1])} />
    </span>
  )
}

/** Goes to the branch before or after the last forked message that is shown; for the keyboard. */
export function turnBranch(shown: readonly Message[], by: 1 | -1): void {
  const fork = shown.findLast((message) => siblings(messages.value, message).length > 1)
  if (fork === undefined) return
  const all = siblings(messages.value, fork)
  const to = all[all.findIndex((one) => one.id === fork.id) + by]
  if (to !== undefined) branch(to)
}

export function editLast(): void {
  ;[...document.querySelectorAll<HTMLButtonElement>('.edit-question')].at(-1)?.click()
}
