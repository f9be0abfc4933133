import { signal } from '@preact/signals'
import type { ComponentChildren } from 'preact'
import { useEffect, useRef } from 'preact/hooks'
import { api } from '../api'
import { t } from '../i18n'
import { shortcuts } from '../keys'
import { preferences, prefer } from '../preferences'
import { attempt, changeSettings, chat, model, remove, removeAll, session, settings } from '../state'
import type { Chat, Settings } from '../types'
import { IconButton } from './icons'

export const dialog = signal<
  { name: 'shortcuts' | 'preferences' | 'settings' | 'deleteAll' } | { name: 'delete'; chat: Chat } | null
>(null)

const close = () => (dialog.value = null)

export function Dialogs() {
  const now = dialog.value
  if (now === null) return null
  if (now.name === 'shortcuts') return <Shortcuts />
  if (now.name === 'preferences') return <PreferencesDialog />
  if (now.name === 'settings') return <SettingsDialog />
  if (now.name === 'delete') {
    const { chat } = now
    return <Confirm title={t('delete')} text={t('deleteText', { title: chat.title })} run={() => remove(chat.id)} />
  }
  return <Confirm title={t('deleteAll')} text={t('deleteAllText')} run={() => removeAll()} />
}

/** A modal: the browser keeps the focus inside and gives it back afterwards. */
function Modal({ title, children }: { title: string; children: ComponentChildren }) {
  const node = useRef<HTMLDialogElement>(null)
  useEffect(() => {
    node.current!.showModal()
    return () => node.current?.close()
  }, [])
  return (
    <dialog
      ref={node}
      aria-labelledby="dialog-title"
      onClose={close}
      onClick={(event) => {
        if (event.target === node.current) close() // the backdrop
      }}
    >
      <div class="dialog">
        <header>
          <h2 id="dialog-title">{title}</h2>
          <IconButton icon="cross" label={t('close')} onClick={close} />
        </header>
        {children}
      </div>
    </dialog>
  )
}

function Confirm({ title, text, run }: { title: string; text: string; run: () => Promise<unknown> }) {
  return (
    <Modal title={title}>
      <p>{text}</p>
      <footer>
        <button type="button" class="small" onClick={close}>
          {t('cancel')}
        </button>
        <button
          type="button"
          class="small danger"
          onClick={() => {
            close()
            void run()
          }}
        >
          {t('delete')}
        </button>
      </footer>
    </Modal>
  )
}

function Shortcuts() {
  return (
    <Modal title={t('shortcuts')}>
      <dl class="shortcuts">
        {shortcuts().map(({ keys, label }) => (
          <div key={label}>
            <dt>{label}</dt>
            <dd>
              {keys.map((key) => (
                <kbd key={key}>{key}</kbd>
              ))}
            </dd>
          </div>
        ))}
      </dl>
      <label class="check">
        <input
          type="checkbox"
          checked={preferences.value.singleKeys ?? true}
          onChange={(event) => void attempt(() => prefer({ singleKeys: event.currentTarget.checked }))}
        />
        {t('singleKeys')}
      </label>
    </Modal>
  )
}

function PreferencesDialog() {
  const at = preferences.value
  return (
    <Modal title={t('preferences')}>
      <Choice
        label={t('theme')}
        name="theme"
        value={at.theme ?? 'system'}
        options={[
          ['system', t('themeSystem')],
          ['light', t('themeLight')],
          ['dark', t('themeDark')],
        ]}
        choose={(theme) => void attempt(() => prefer({ theme }))}
      />
      <Choice
        label={t('language')}
        name="language"
        value={at.language ?? 'auto'}
        options={[
          ['auto', t('languageAuto')],
          ['en', 'English'],
          ['zh', '中文'],
        ]}
        choose={(language) => void attempt(() => prefer({ language }))}
      />
      <label class="check">
        <input
          type="checkbox"
          checked={at.keepThoughts ?? false}
          onChange={(event) => void attempt(() => prefer({ keepThoughts: event.currentTarget.checked }))}
        />
        {t('keepThoughts')}
      </label>
      <label class="check">
        <input
          type="checkbox"
          checked={at.singleKeys ?? true}
          onChange={(event) => void attempt(() => prefer({ singleKeys: event.currentTarget.checked }))}
        />
        {t('singleKeys')}
      </label>
      <footer>
        <span class="hint">hadal {session.value?.version}</span>
        <span class="spring" />
        {session.value?.login && (
          <button
            type="button"
            class="small"
            onClick={() => void attempt(() => api.signOut()).then(() => location.reload())}
          >
            {t('signOut')}
          </button>
        )}
      </footer>
    </Modal>
  )
}

export function Choice<T extends string>(props: { label: string; name: string; value: T; options: [T, string][]; choose: (value: T) => void }) {
  return (
    <fieldset class="choice">
      <legend>{props.label}</legend>
      <span class="segments">
        {props.options.map(([value, words]) => (
          <label key={value}>
            <input type="radio" name={props.name} checked={props.value === value} onChange={() => props.choose(value)} />
            <span>{words}</span>
          </label>
        ))}
      </span>
    </fieldset>
  )
}

const numbers: { key: keyof Settings & ('temperature' | 'top_p' | 'top_k' | 'min_p' | 'max_tokens' | 'seed' | 'presence_penalty' | 'frequency_penalty' | 'repetition_penalty'); step: number; min?: number; max?: number }[] = [
  { key: 'temperature', step: 0.1, min: 0, max: 2 },
  { key: 'top_p', step: 0.05, min: 0, max: 1 },
  { key: 'top_k', step: 1, min: 0 },
  { key: 'min_p', step: 0.01, min: 0, max: 1 },
  { key: 'max_tokens', step: 1, min: 1 },
  { key: 'seed', step: 1 },
  { key: 'presence_penalty', step: 0.1, min: -2, max: 2 },
  { key: 'frequency_penalty', step: 0.1, min: -2, max: 2 },
  { key: 'repetition_penalty', step: 0.05, min: 0 },
]

function SettingsDialog() {
  const at = settings.value
  const change = (to: Settings) => void changeSettings(to)
  return (
    <Modal title={chat.value ? t('settingsOfChat') : t('settingsOfNewChat')}>
      <label class="field">
        <span>{t('systemPrompt')}</span>
        <textarea
          rows={4}
          value={at.system ?? ''}
          placeholder={t('systemPlaceholder')}
          onChange={(event) => change({ system: event.currentTarget.value.trim() || null })}
        />
      </label>
      <div class="numbers">
        {numbers.map(({ key, ...range }) => {
          const usual = key === 'temperature' || key === 'top_p' ? model.value?.sampling[key] : key === 'max_tokens' ? model.value?.max_tokens : null
          return (
            <label class="field" key={key}>
              <span>{t(key)}</span>
              <input
                type="number"
                {...range}
                value={at[key] ?? ''}
                placeholder={usual == null ? t('usual') : String(usual)}
                onChange={(event) => change({ [key]: event.currentTarget.value === '' ? null : event.currentTarget.valueAsNumber })}
              />
            </label>
          )
        })}
      </div>
      <label class="field">
        <span>{t('stopTexts')}</span>
        <textarea
          rows={2}
          value={(at.stop ?? []).join('\n')}
          onChange={(event) => {
            const lines = event.currentTarget.value.split('\n').filter((line) => line !== '')
            change({ stop: lines.length > 0 ? lines : null })
          }}
        />
      </label>
      <p class="hint">{t('settingsHint')}</p>
    </Modal>
  )
}
