import { signal } from '@preact/signals'
import { useEffect } from 'preact/hooks'
import { dollars, tokens } from '../format'
import { language, t } from '../i18n'
import { route } from '../route'
import { announcement, chat, chooseModel, model, offline, running, session, signIn, start, toast } from '../state'
import { Conversation } from './chat'
import { Dialogs, dialog } from './dialogs'
import { SideBySide } from './duel'
import { IconButton, Mark } from './icons'
import { ModelPicker } from './models'
import { Sidebar, sidebarOpen } from './sidebar'

export function App() {
  useEffect(() => {
    document.documentElement.lang = language.value
  }, [language.value])
  useEffect(() => {
    const title = chat.value?.title
    document.title = (running.value !== null ? '… ' : '') + (title ? `${title} · hadal` : 'hadal')
  }, [chat.value?.title, running.value === null])

  if (session.value === null) return <Unreached />
  if (!session.value.signed_in) return <SignIn />
  return (
    <div class="app" data-sidebar={sidebarOpen.value}>
      <a class="skip" href="#composer">
        {t('skip')}
      </a>
      <Sidebar />
      <main>
        <TopBar />
        {route.value.view === 'duel' ? <SideBySide /> : <Conversation />}
      </main>
      <Toast />
      <Dialogs />
      <div class="hidden" role="status" aria-live="polite">
        {announcement.value}
      </div>
    </div>
  )
}

function TopBar() {
  const open = chat.value
  return (
    <header class="top">
      {!sidebarOpen.value && (
        <IconButton icon="menu" label={t('openSidebar')} onClick={() => (sidebarOpen.value = true)} />
      )}
      {route.value.view === 'chat' ? (
        <ModelPicker id="model" label={t('model')} value={open?.model ?? model.value?.id ?? null} onChoose={(id) => void chooseModel(id)} />
      ) : (
        <span class="top-title">{t('sideBySide')}</span>
      )}
      <span class="spring" />
      {open !== null && open.tokens > 0 && (
        <span class="totals" title={t('totals')}>
          {tokens(open.tokens)}
          {open.cost_usd !== null && ` · ${dollars(open.cost_usd)}`}
        </span>
      )}
      {route.value.view === 'chat' && (
        <IconButton icon="sliders" label={t('settings')} onClick={() => (dialog.value = { name: 'settings' })} />
      )}
    </header>
  )
}

function Toast() {
  const at = toast.value
  useEffect(() => {
    if (at === null || at.bad) return // what went wrong stays until it was read
    const timer = setTimeout(() => (toast.value = null), 3500)
    return () => clearTimeout(timer)
  }, [at])
  return (
    <div class="toasts" role={at?.bad ? 'alert' : 'status'}>
      {at !== null && (
        <div class="toast" data-bad={at.bad}>
          <span>{at.text}</span>
          <IconButton icon="cross" label={t('close')} onClick={() => (toast.value = null)} />
        </div>
      )}
    </div>
  )
}

function Unreached() {
  return (
    <main class="gate">
      <Mark />
      {offline.value && (
        <>
          <p role="alert">{t('unreachable')}</p>
          <button type="button" class="primary" onClick={() => void start()}>
            {t('again')}
          </button>
        </>
      )}
    </main>
  )
}

const wrong = signal(false)

function SignIn() {
  return (
    <main class="gate">
      <Mark />
      <h1>hadal</h1>
      <form
        onSubmit={(event) => {
          event.preventDefault()
          const key = String(new FormData(event.currentTarget).get('key'))
          void signIn(key).then(() => (wrong.value = !session.value?.signed_in))
        }}
      >
        <label class="field">
          <span>{t('key')}</span>
          <input name="key" type="password" autocomplete="current-password" required aria-invalid={wrong.value} />
        </label>
        {wrong.value && <p role="alert">{t('wrongKey')}</p>}
        <button type="submit" class="primary">
          {t('signIn')}
        </button>
      </form>
    </main>
  )
}
