// Side by side: what was chosen, what is dealt, and the score so far.
import { batch, computed, signal } from '@preact/signals'
import { api } from './api'
import { go } from './route'
import { attempt, chat, draft, messages, models, noteChat, pairs, show } from './state'
import type { Score, Task } from './types'
import { watch } from './live'

export const tasks = signal<Task[]>([])
export const task = signal<Task | null>(null)
export const difficulty = signal(1)
export const own = signal(false) // the user's own problem instead of a dealt one
export const score = signal<Score | null>(null)
export const dealing = signal(false)

const picked = signal<[string, string] | null>(null)

/** Left and right: chosen, else the base and the end of a run, else what there is. */
export const sides = computed<[string, string] | null>(() => {
  if (picked.value !== null) return picked.value
  if (pairs.value.length > 0) return pairs.value[0]
  const [first, second] = models.value
  return first === undefined ? null : [first.id, (second ?? first).id]
})

export function pick(side: 0 | 1, id: string): void {
  const now = sides.value
  if (now === null) return
  if (id === now[1 - side]) return swap() // a model cannot meet itself
  picked.value = side === 0 ? [id, now[1]] : [now[0], id]
}

export function swap(): void {
  const now = sides.value
  if (now !== null) picked.value = [now[1], now[0]]
}

export async function loadTasks(): Promise<void> {
  if (tasks.value.length > 0) return
  await attempt(async () => {
    tasks.value = (await api.tasks()).tasks
    if (task.value === null && tasks.value.length > 0) chooseTask(tasks.value[0].name)
  })
}

export function chooseTask(name: string): void {
  const found = tasks.value.find((one) => one.name === name)
  if (found === undefined) return
  batch(() => {
    task.value = found
    difficulty.value = found.default
  })
}

export async function refreshScore(): Promise<void> {
  const now = sides.value
  if (now !== null) await attempt(async () => (score.value = await api.score(now)))
}

export async function forget(): Promise<void> {
  await attempt(async () => {
    await api.deleteDuels()
    go('/side-by-side')
  })
}

export const deal = () =>
  task.value === null ? Promise.resolve(false) : begin({ task: task.value.name, difficulty: difficulty.value })

export const askOwn = (question: string, gold: string) => begin({ question, ...(gold.trim() ? { gold: gold.trim() } : {}) })

async function begin(problem: { task?: string; difficulty?: number; question?: string; gold?: string }): Promise<boolean> {
  const now = sides.value
  if (now === null || dealing.value) return false
  dealing.value = true
  const well = await attempt(async () => {
    const { thinking, effort, budget } = draft.value.settings
    const dealt = await api.duel({ models: now, settings: { thinking, effort, budget }, ...problem })
    show(dealt.chat, [dealt.question, ...dealt.answers])
    noteChat(dealt.chat)
    go('/side-by-side/' + dealt.chat.id)
    dealt.answers.forEach(watch)
  })
  dealing.value = false
  return well
}

/** The question and answers of the open round, in the order of its models. */
export const round = computed(() => {
  const open = chat.value
  if (open?.duel == null) return null
  const question = messages.value.find((message) => message.role === 'user')
  if (question === undefined) return null
  const answers = messages.value.filter((message) => message.role === 'assistant')
  return { duel: open.duel, question, answers, over: answers.every((answer) => answer.status !== 'running') }
})
