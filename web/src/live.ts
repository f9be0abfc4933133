// Answers under way. Text arrives in many small pieces; it is gathered and shown once for each frame of the screen.
import { signal } from '@preact/signals'
import { api, follow } from './api'
import { seconds } from './format'
import { t } from './i18n'
import type { Chat, Message, Phase } from './types'

export interface Live {
  phase: Phase
  tokens: number
  tokensPerSecond: number | null
  began: number // by this page's clock
  thought: string
  answer: string
  thoughtBegan: number | null
  thoughtEnded: number | null
}

const lives = signal<Map<string, Live>>(new Map())
const leave = new Map<string, { chat: string; stop: () => void }>()

/** Finished answers are announced and stored by whoever owns the messages. */
let owner: { put(message: Message): void; noteChat(chat: Chat): void }
let announce: (text: string) => void = () => {}

export function adopt(messages: typeof owner): void {
  owner = messages
}

export function announceWith(say: (text: string) => void): void {
  announce = say
}

export function liveOf(id: string): Live | undefined {
  return lives.value.get(id)
}

const pending = new Map<string, Live>()
let frame = 0

function later(id: string, live: Live): void {
  pending.set(id, live)
  // A hidden tab draws no frames, yet what came must be there when it is looked at.
  if (frame === 0) frame = document.hidden ? window.setTimeout(flush, 250) : requestAnimationFrame(flush)
}

function flush(): void {
  frame = 0
  const next = new Map(lives.value)
  for (const [id, live] of pending) next.set(id, { ...live })
  pending.clear()
  lives.value = next
}

/** Stops following the answers of other chats: a browser opens only six connections to one server. */
export function leaveOthers(chat: string | null): void {
  const next = new Map(lives.value)
  for (const [id, one] of leave) {
    if (one.chat === chat) continue
    one.stop()
    leave.delete(id)
    pending.delete(id)
    next.delete(id)
  }
  lives.value = next
}

export function watch(message: Message): void {
  if (leave.has(message.id)) return
  const id = message.id
  const live: Live = {
    phase: 'queued',
    tokens: 0,
    tokensPerSecond: null,
    began: Date.now(),
    thought: message.thought ?? '',
    answer: message.content,
    thoughtBegan: null,
    thoughtEnded: null,
  }
  const enter = (phase: Phase) => {
    if (phase === live.phase) return
    if (live.phase === 'thinking') live.thoughtEnded = Date.now()
    if (phase === 'thinking') live.thoughtBegan ??= Date.now()
    live.phase = phase
    if (phase === 'thinking' || phase === 'answering') announce(t(phase))
  }
  const end = (final: Message) => {
    leave.delete(id)
    pending.delete(id)
    const next = new Map(lives.value)
    next.delete(id)
    owner.put(final)
    lives.value = next
    announce(ending(final))
  }
  later(id, live)
  leave.set(id, {
    chat: message.chat,
    stop: follow(id, {
      snapshot(event) {
        const { created, wait_ms } = event.message
        if (event.phase === 'thinking') live.thoughtBegan = Math.min(Date.now(), created + (wait_ms ?? 0))
        enter(event.phase)
        live.thought = event.message.thought ?? ''
        live.answer = event.message.content
        live.tokens = event.tokens
        live.tokensPerSecond = event.tokens_per_second
        live.began = Math.min(live.began, event.message.created)
        later(id, live)
      },
      phase(event) {
        enter(event.phase)
        later(id, live)
      },
      delta(event) {
        live.thought += event.thought ?? ''
        live.answer += event.answer ?? ''
        later(id, live)
      },
      moved(event) {
        live.thought = event.thought
        live.answer = ''
        later(id, live)
      },
      speed(event) {
        live.tokens = event.tokens
        live.tokensPerSecond = event.tokens_per_second
        live.began = Date.now() - event.elapsed_ms
        later(id, live)
      },
      done(event) {
        end(event.message)
        if (event.chat !== null) owner.noteChat(event.chat)
      },
      lost() {
        leave.delete(id)
        // The server may only have been restarted: then it knows how the answer ended.
        const check = () =>
          api.message(id).then(
            (found) => (found.status === 'running' ? watch(found) : end(found)),
            () => window.setTimeout(check, 2000),
          )
        void check()
      },
    }),
  })
}

function ending(message: Message): string {
  const thought = message.thought_ms ? t('thoughtFor', { time: seconds(message.thought_ms) }) : ''
  const end = { done: t('answerReady'), stopped: t('stopped'), interrupted: t('interrupted'), failed: t('failed'), running: '' }[
    message.status
  ]
  return [end, thought].filter(Boolean).join('. ')
}
