import { useEffect, useLayoutEffect, useRef, useState } from 'preact/hooks'
import { t } from '../i18n'
import { route } from '../route'
import { ask, changeSettings, model, running, settings, shown, stop } from '../state'
import type { Model, Settings } from '../types'
import { Icon } from './icons'
import { editLast } from './message'
import { PhaseLine } from './phase'

/** What was typed and not yet sent, for each chat, also after a reload. */
const drafts = {
  key: (id: string | undefined) => 'hadal-draft-' + (id ?? 'new'),
  load: (id: string | undefined) => sessionStorage.getItem(drafts.key(id)) ?? '',
  keep(id: string | undefined, text: string): void {
    try {
      if (text === '') sessionStorage.removeItem(drafts.key(id))
      else sessionStorage.setItem(drafts.key(id), text)
    } catch {
      // More than the browser keeps: it stays in the field until a reload.
    }
  },
}

export function Composer() {
  const id = route.value.id ?? undefined
  return <Field key={id} id={id} />
}

function Field({ id }: { id: string | undefined }) {
  const [text, setText] = useState(() => drafts.load(id))
  const [sending, setSending] = useState(false)
  const area = useRef<HTMLTextAreaElement>(null)
  const now = running.value
  const cannot = model.value === null || !model.value.ok

  useLayoutEffect(() => grow(area.current!), [text])
  useLayoutEffect(() => {
    if (matchMedia('(hover: hover)').matches) area.current!.focus() // on a phone the keyboard would cover the page
  }, [])
  useEffect(() => drafts.keep(id, text), [id, text])

  const submit = async () => {
    const content = text.trim()
    if (content === '' || sending || now !== null || cannot) return
    setSending(true)
    const well = await ask(content)
    setSending(false)
    if (!well) return // nothing that was typed is lost: it stands in the field until the server has it
    setText('')
    drafts.keep(id, '')
  }

  return (
    <div class="dock">
      {now !== null && <PhaseLine message={now} />}
      <form
        class="composer"
        onSubmit={(event) => {
          event.preventDefault()
          void submit()
        }}
      >
        <textarea
          id="composer"
          ref={area}
          rows={1}
          value={text}
          readOnly={sending}
          placeholder={shown.value.length > 0 ? t('askMore') : t('askFirst')}
          aria-label={t('yourQuestion')}
          enterkeyhint="send"
          onInput={(event) => setText(event.currentTarget.value)}
          onKeyDown={(event) => {
            if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
              event.preventDefault()
              void submit()
            } else if (event.key === 'ArrowUp' && text === '') {
              editLast()
            }
          }}
        />
        <div class="controls">
          <div class="options">
            {model.value !== null && <ThinkingControls model={model.value} settings={settings.value} change={changeSettings} />}
          </div>
          {now !== null ? (
            <button type="button" class="send" aria-label={t('stop')} title={t('stop')} onClick={() => void stop()}>
              <Icon name="stop" />
            </button>
          ) : (
            <button type="submit" class="send" aria-label={t('send')} title={t('send')} disabled={text.trim() === '' || sending || cannot}>
              <Icon name="send" />
            </button>
          )}
        </div>
      </form>
      {model.value?.single_turn && shown.value.length > 0 && <p class="dock-note">{t('singleTurn')}</p>}
    </div>
  )
}

function grow(area: HTMLTextAreaElement): void {
  area.style.height = 'auto'
  area.style.height = `${Math.min(area.scrollHeight, innerHeight * 0.4)}px`
}

/** Whether, how hard and how long to think, as far as the model lets one choose. */
export function ThinkingControls({ model, settings, change }: { model: Model; settings: Settings; change: (to: Settings) => Promise<void> }) {
  const name = 'thinking-' + model.id
  if (model.thinking === 'never') return <span class="control-note">{t('neverThinks')}</span>
  const thinks = settings.thinking !== false
  return (
    <>
      {model.thinking === 'always' ? (
        <span class="control-note">{t('alwaysThinks')}</span>
      ) : (
        <fieldset class="segments">
          <legend class="hidden">{t('think')}</legend>
          {([null, true, false] as const).map((value) => (
            <label key={String(value)} title={t(value === null ? 'thinkAutoTitle' : value ? 'thinkOnTitle' : 'thinkOffTitle')}>
              <input
                type="radio"
                name={name}
                checked={(settings.thinking ?? null) === value}
                onChange={() => void change({ thinking: value })}
              />
              <span>{t(value === null ? 'thinkAuto' : value ? 'thinkOn' : 'thinkOff')}</span>
            </label>
          ))}
        </fieldset>
      )}
      {model.efforts.length > 0 && (
        <label class="control" data-dim={!thinks}>
          <span>{t('effort')}</span>
          <select value={settings.effort ?? ''} onChange={(event) => void change({ effort: event.currentTarget.value || null })}>
            <option value="">{t('effortDefault')}</option>
            {model.efforts.map((effort) => (
              <option key={effort} value={effort}>
                {effortName(effort)}
              </option>
            ))}
          </select>
        </label>
      )}
      {model.budget && (
        <label class="control" data-dim={!thinks} title={t('budgetTitle')}>
          <span>{t('budget')}</span>
          <input
            type="number"
            min={0}
            step={1}
            inputMode="numeric"
            placeholder="∞"
            value={settings.budget ?? ''}
            onChange={(event) => void change({ budget: event.currentTarget.value === '' ? null : Math.max(0, Math.round(event.currentTarget.valueAsNumber)) })}
          />
        </label>
      )}
    </>
  )
}

function effortName(effort: string): string {
  if (effort === 'low') return t('effortLow')
  if (effort === 'medium') return t('effortMedium')
  if (effort === 'high') return t('effortHigh')
  if (effort === 'max') return t('effortMax')
  return effort
}
