// Every shortcut, once: the handler and the sheet both read this list.
import { t } from './i18n'
import { preferences } from './preferences'
import { go, route } from './route'
import { deal, own } from './duel'
import { answerNow, carryOn, mayAnswerNow, modelNamed, regenerate, running, say, shown, stop } from './state'
import type { Message } from './types'
import { dialog } from './view/dialogs'
import { copy } from './view/markdown'
import { editLast, turnBranch } from './view/message'
import { sidebarCovers, sidebarOpen } from './view/sidebar'
import { toggleThought } from './view/thought'

interface Shortcut {
  keys: string[]
  label: string
  /** Which event it is; single keys count only where nothing is being typed. */
  match?: (event: KeyboardEvent) => boolean
  key?: string
  run?: () => void
}

const command = (letter: string, shift: boolean) => (event: KeyboardEvent) =>
  (event.ctrlKey || event.metaKey) && event.shiftKey === shift && event.key.toLowerCase() === letter
const mod = /Mac|iP/.test(navigator.platform) ? '⌘' : 'Ctrl'

const lastAnswer = (): Message | undefined => shown.value.findLast((message) => message.role === 'assistant')
const focus = (id: string) => document.getElementById(id)?.focus()

/** At once, so that the next key goes there, and again where it is only about to be shown. */
function focusOnceShown(id: string): void {
  focus(id)
  requestAnimationFrame(() => focus(id))
}

function search(): void {
  sidebarOpen.value = true
  focusOnceShown('search')
}

/** Moves the focus to the message after or before the one it is at. */
function step(by: 1 | -1): void {
  const all = [...document.querySelectorAll<HTMLElement>('article.question, article.answer')]
  const at = all.findIndex((node) => node.contains(document.activeElement))
  const to = all[at < 0 ? (by > 0 ? 0 : all.length - 1) : at + by]
  to?.focus({ preventScroll: true })
  to?.scrollIntoView({ block: 'start' })
}

export function shortcuts(): Shortcut[] {
  return [
    { keys: ['Enter'], label: t('keySend') },
    { keys: ['Shift', 'Enter'], label: t('keyLine') },
    { keys: ['↑'], label: t('keyEdit') },
    { keys: [mod, 'Shift', 'O'], label: t('newChat'), match: command('o', true), run: () => (go('/'), focusOnceShown('composer')) },
    { keys: [mod, 'K'], label: t('searchLabel'), match: command('k', false), run: search },
    { keys: ['Esc'], label: t('keyStop') },
    { keys: ['?'], label: t('shortcuts'), key: '?', run: () => (dialog.value = { name: 'shortcuts' }) },
    { keys: ['/'], label: t('keyFocus'), key: '/', run: () => focus('composer') },
    { keys: ['N'], label: route.value.view === 'duel' ? t('nextProblem') : t('newChat'), key: 'n', run: () => (route.value.view === 'duel' && !own.value ? void deal() : (go('/'), focus('composer'))) },
    { keys: ['A'], label: t('answerNow'), key: 'a', run: () => void (mayAnswerNow(running.value) && answerNow()) },
    { keys: ['T'], label: t('keyThought'), key: 't', run: () => void (lastAnswer() && toggleThought(lastAnswer()!)) },
    { keys: ['R'], label: t('regenerate'), key: 'r', run: () => void (running.value === null && lastAnswer() && route.value.view === 'chat' && regenerate(lastAnswer()!)) },
    { keys: ['G'], label: t('continue'), key: 'g', run: goOn },
    { keys: ['E'], label: t('edit'), key: 'e', run: editLast },
    { keys: ['C'], label: t('copyAnswer'), key: 'c', run: () => void (lastAnswer() && copy(lastAnswer()!.content).then(() => say(t('copied')))) },
    { keys: ['['], label: t('previousBranch'), key: '[', run: () => turnBranch(shown.value, -1) },
    { keys: [']'], label: t('nextBranch'), key: ']', run: () => turnBranch(shown.value, 1) },
    { keys: ['J'], label: t('keyDown'), key: 'j', run: () => step(1) },
    { keys: ['K'], label: t('keyUp'), key: 'k', run: () => step(-1) },
    { keys: ['M'], label: t('keyModel'), key: 'm', run: () => document.getElementById(route.value.view === 'duel' ? 'left' : 'model')?.click() },
    { keys: ['S'], label: t('sideBySide'), key: 's', run: () => go('/side-by-side') },
    { keys: ['B'], label: t('keySidebar'), key: 'b', run: () => (sidebarOpen.value = !sidebarOpen.value) },
    { keys: [','], label: t('settings'), key: ',', run: () => (dialog.value = { name: route.value.view === 'chat' ? 'settings' : 'preferences' }) },
  ]
}

function goOn(): void {
  const answer = lastAnswer()
  if (answer === undefined || running.value !== null || !modelNamed(answer.model)?.continue) return
  const cut = answer.finish_reason === 'length' || answer.status === 'stopped' || answer.status === 'interrupted'
  if (cut) void carryOn(answer)
}

export function onKey(event: KeyboardEvent): void {
  if (event.defaultPrevented || dialog.value !== null) return
  if (event.key === 'Escape') {
    if (sidebarCovers()) sidebarOpen.value = false
    else if (running.value !== null) void stop()
    else (document.activeElement as HTMLElement | null)?.blur()
    return
  }
  const target = event.target as HTMLElement
  const typing = /^(?:INPUT|TEXTAREA|SELECT)$/.test(target.tagName) && !/^(?:radio|checkbox|range)$/.test((target as HTMLInputElement).type)
  const single = !typing && !event.ctrlKey && !event.metaKey && !event.altKey && (preferences.value.singleKeys ?? true)
  const found = shortcuts().find((one) => one.match?.(event) || (single && one.key !== undefined && one.key === event.key.toLowerCase()))
  if (found === undefined) return
  event.preventDefault()
  found.run!()
}
