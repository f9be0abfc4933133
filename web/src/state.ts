// What the page knows, as signals, and what a person can do to it. Views read signals and call these functions.
import { batch, computed, signal } from '@preact/signals'
import { api, ApiError, type Started } from './api'
import { t } from './i18n'
import { adopt, leaveOthers, liveOf, watch } from './live'
import { load as loadPreferences } from './preferences'
import { go, route } from './route'
import { deepest, path } from './tree'
import type { Chat, Message, Model, Models, Session, Settings } from './types'

export const session = signal<Session | null>(null)
export const models = signal<Model[]>([])
export const pairs = signal<[string, string][]>([])
export const upstreams = signal<Models['upstreams']>([])
const defaultModel = signal<string | null>(null)

export const chat = signal<Chat | null>(null) // the open one; null: a new chat, not yet stored
export const messages = signal<Message[]>([]) // all its branches
export const draft = signal<{ model: string | null; settings: Settings }>({ model: null, settings: {} }) // of the new chat

export const history = signal<Chat[]>([])
export const more = signal(false)
export const query = signal('')

export const toast = signal<{ text: string; bad: boolean } | null>(null)
export const announcement = signal('') // what a screen reader is told, once for each state
export const offline = signal(false)

export const shown = computed(() => path(messages.value, chat.value?.leaf ?? null))
export const running = computed(() => shown.value.find((message) => message.status === 'running') ?? null)
export const settings = computed(() => chat.value?.settings ?? draft.value.settings)
export const model = computed(() => {
  const wanted = chat.value?.model ?? draft.value.model ?? defaultModel.value
  return models.value.find((one) => one.id === wanted) ?? null
})

export function modelNamed(id: string | null): Model | null {
  return models.value.find((one) => one.id === id) ?? null
}

export function say(text: string, bad = false): void {
  toast.value = { text, bad }
}

/** Runs what talks to the server; what goes wrong is said in its own words. True when it went well. */
export async function attempt(action: () => Promise<unknown>): Promise<boolean> {
  try {
    await action()
    offline.value = false
    return true
  } catch (error) {
    if (!(error instanceof ApiError)) throw error
    if (error.status === 0) offline.value = true
    if (error.status === 401 && session.value) session.value = { ...session.value, signed_in: false }
    say(error.status === 0 ? t('unreachable') : error.message, true)
    return false
  }
}

// --- starting -------------------------------------------------------------------------------------------------

export async function start(): Promise<void> {
  await attempt(async () => {
    session.value = await api.session()
    if (session.value.signed_in) await begin()
  })
}

async function begin(): Promise<void> {
  await Promise.all([loadPreferences(), refreshModels(), refreshHistory()])
  await open(route.value)
}

export async function signIn(key: string): Promise<void> {
  await attempt(async () => {
    await api.signIn(key)
    toast.value = null // a key that was wrong before
    session.value = await api.session()
    await begin()
  })
}

export async function refreshModels(): Promise<void> {
  const answer = await api.models()
  batch(() => {
    models.value = answer.models
    pairs.value = answer.pairs
    upstreams.value = answer.upstreams
    defaultModel.value = answer.default
  })
}

// --- history --------------------------------------------------------------------------------------------------

let asked = 0

/** The newest chats, or those that match the search. In a side-by-side view the rounds are listed instead. */
export async function refreshHistory(): Promise<void> {
  const turn = ++asked
  const q = query.value.trim()
  const answer = await api.chats({ kind: listed(), q })
  if (turn !== asked) return // a later question was answered first
  batch(() => {
    history.value = answer.chats
    more.value = answer.more
  })
}

export async function olderHistory(): Promise<void> {
  const last = history.value.at(-1)
  if (last === undefined) return
  await attempt(async () => {
    const answer = await api.chats({ kind: listed(), q: query.value.trim(), before: last.updated })
    batch(() => {
      history.value = [...history.value, ...answer.chats]
      more.value = answer.more
    })
  })
}

const listed = () => (query.value.trim() !== '' ? 'all' : route.value.view === 'duel' ? 'duel' : 'chat')

/** Puts a chat that changed into the history, at the top where it is new. */
export function noteChat(changed: Chat): void {
  const open = chat.value
  if (open?.id === changed.id) {
    // What the reader sets here is ahead of the server, whose answer may be to an earlier change.
    chat.value = { ...changed, leaf: open.leaf, settings: open.settings, model: open.model }
  }
  const known = history.value.some((one) => one.id === changed.id)
  if (known) {
    history.value = history.value.map((one) => (one.id === changed.id ? { ...one, ...changed, snippet: one.snippet } : one))
  } else if (query.value.trim() === '' && changed.kind === listed()) {
    history.value = [changed, ...history.value]
  }
}

export async function rename(id: string, title: string): Promise<void> {
  await attempt(async () => noteChat(await api.changeChat(id, { title })))
}

export async function remove(id: string): Promise<void> {
  await attempt(async () => {
    await api.deleteChat(id)
    history.value = history.value.filter((one) => one.id !== id)
    if (chat.value?.id === id) go(route.value.view === 'duel' ? '/side-by-side' : '/')
    say(t('deleted'))
  })
}

export async function removeAll(): Promise<void> {
  await attempt(async () => {
    await api.deleteChats()
    history.value = []
    go('/')
    say(t('deleted'))
  })
}

export async function importFile(file: File): Promise<void> {
  await attempt(async () => {
    const text = await file.text()
    const { chats } = await api.import(text, /\.(?:md|markdown)$/i.test(file.name))
    await refreshHistory()
    say(t('imported', { n: chats.length }))
    if (chats.length === 1) go(pathOf(chats[0]))
  })
}

export const pathOf = (one: Chat) => (one.kind === 'duel' ? '/side-by-side/' : '/c/') + one.id

// --- the open chat --------------------------------------------------------------------------------------------

let listedView = ''

/** Shows what the address names. */
export async function open(to: { view: 'chat' | 'duel'; id: string | null }): Promise<void> {
  if (to.view !== listedView) {
    listedView = to.view
    if (query.value === '') void attempt(refreshHistory)
  }
  if (to.id !== null && chat.value?.id === to.id) {
    reveal()
    return
  }
  leaveOthers(to.id)
  batch(() => {
    chat.value = null
    messages.value = []
  })
  if (to.id === null) return
  const id = to.id
  await attempt(async () => {
    const { messages: all, ...found } = await api.chat(id)
    if (route.value.id !== id) return
    show(found, all)
    reveal()
  })
}

/** The message that a search found; it is shown once its chat is open. */
export const sought = signal<string | null>(null)

function reveal(): void {
  const id = sought.value
  sought.value = null
  const open = chat.value
  if (id === null || open === null || !messages.value.some((message) => message.id === id)) return
  if (!shown.value.some((message) => message.id === id)) chat.value = { ...open, leaf: deepest(messages.value, id) }
  requestAnimationFrame(() => {
    const node = document.getElementById(`m-${id}`)
    node?.scrollIntoView({ block: 'start' })
    node?.focus({ preventScroll: true })
  })
}

export function show(found: Chat, all: Message[]): void {
  const last = all.at(-1)
  batch(() => {
    messages.value = all
    chat.value = { ...found, leaf: found.leaf ?? last?.id ?? null }
  })
  for (const message of all) if (message.status === 'running') watch(message)
}

/** Puts a message into the open chat, in place of its former state. */
export function put(message: Message): void {
  if (chat.value?.id !== message.chat) return
  const all = messages.value
  messages.value = all.some((one) => one.id === message.id)
    ? all.map((one) => (one.id === message.id ? message : one))
    : [...all, message]
}

export async function changeSettings(change: Settings): Promise<void> {
  const next = { ...settings.value, ...change }
  const open = chat.value
  if (open === null) {
    draft.value = { ...draft.value, settings: next }
    return
  }
  chat.value = { ...open, settings: next } // at once; the server confirms
  await attempt(async () => noteChat(await api.changeChat(open.id, { settings: next })))
}

export async function chooseModel(id: string): Promise<void> {
  draft.value = { ...draft.value, model: id }
  const open = chat.value
  if (open === null) return
  chat.value = { ...open, model: id }
  await attempt(async () => noteChat(await api.changeChat(open.id, { model: id })))
}

/** Asks: at the end of the shown branch, or beside an edited question (`parent` is what that one followed). */
export async function ask(content: string, parent?: string | null): Promise<boolean> {
  return attempt(async () => {
    const open = chat.value
    if (open !== null) return begun(await askIn(open, content, parent === undefined ? open.leaf : parent))
    const chosen = model.value?.id
    const made = await api.newChat({ ...(chosen ? { model: chosen } : {}), settings: settings.value })
    let started: Started
    try {
      started = await askIn(made, content, null)
    } catch (error) {
      await api.deleteChat(made.id).catch(() => undefined) // a question that was refused leaves no empty chat behind
      throw error
    }
    batch(() => {
      chat.value = made
      messages.value = []
      const { thinking, effort, budget } = draft.value.settings // how to think is a habit; the rest belonged to that chat
      draft.value = { ...draft.value, settings: { thinking, effort, budget } }
    })
    go('/c/' + made.id)
    begun(started)
  })
}

/** The settings go with the question: a change made just before must not come after it. */
const askIn = (to: Chat, content: string, parent: string | null) =>
  api.answer(to.id, { content, parent, settings: to.settings, ...(to.model ? { model: to.model } : {}) })

export async function regenerate(answer: Message): Promise<void> {
  await attempt(async () => begun(await api.answer(answer.chat, { parent: answer.parent, ...(chat.value?.model ? { model: chat.value.model } : {}) })))
}

function begun({ question, answer, chat: changed }: Started): void {
  batch(() => {
    if (question !== null) put(question)
    put(answer)
    noteChat(changed)
    if (chat.value?.id === changed.id) chat.value = { ...chat.value, leaf: answer.id }
  })
  watch(answer)
}

export async function carryOn(answer: Message): Promise<void> {
  await attempt(async () => {
    const message = await api.continue(answer.id)
    put(message)
    watch(message)
  })
}

export async function stop(answer: Message | null = running.value): Promise<void> {
  if (answer !== null) await attempt(() => api.stop(answer.id))
}

export function mayAnswerNow(answer: Message | null): boolean {
  return answer !== null && liveOf(answer.id)?.phase === 'thinking' && (modelNamed(answer.model)?.answer_now ?? false)
}

export async function answerNow(answer: Message | null = running.value): Promise<void> {
  if (answer !== null) await attempt(() => api.answerNow(answer.id))
}

export async function judge(answer: Message, right: boolean | null): Promise<void> {
  await attempt(async () => put(await api.judge(answer.id, right)))
}

/** Shows another branch, down to its newest message, and remembers it. */
export function branch(to: Message): void {
  const open = chat.value
  if (open === null) return
  const leaf = deepest(messages.value, to.id)
  chat.value = { ...open, leaf }
  void attempt(() => api.changeChat(open.id, { leaf }))
}

adopt({ put, noteChat })
