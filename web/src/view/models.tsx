import { Fragment } from 'preact'
import { useEffect, useRef, useState } from 'preact/hooks'
import { t } from '../i18n'
import { attempt, modelNamed, models, refreshModels, upstreams } from '../state'
import type { Model } from '../types'
import { Icon } from './icons'

/** The upstreams that were never reached, so that no model of theirs is listed. */
export const silent = () => upstreams.value.filter((one) => !one.ok && !models.value.some((model) => model.group === one.name))

/** A button with the chosen model's name, and the list of all models behind it. */
export function ModelPicker({ value, onChoose, label, id }: { value: string | null; onChoose: (id: string) => void; label: string; id: string }) {
  const [open, setOpen] = useState(false)
  const [active, setActive] = useState(0)
  const root = useRef<HTMLDivElement>(null)
  const list = useRef<HTMLUListElement>(null)
  const all = models.value
  const chosen = modelNamed(value)

  useEffect(() => {
    if (!open) return
    list.current?.focus()
    void attempt(refreshModels) // an upstream may have come up meanwhile
    const outside = (event: Event) => {
      if (!root.current!.contains(event.target as Node)) setOpen(false)
    }
    document.addEventListener('pointerdown', outside)
    return () => document.removeEventListener('pointerdown', outside)
  }, [open])
  useEffect(() => {
    if (open) list.current?.querySelector('[data-active=true]')?.scrollIntoView({ block: 'nearest' })
  }, [open, active])

  const show = () => {
    setActive(Math.max(0, all.findIndex((one) => one.id === value)))
    setOpen(true)
  }
  const close = () => {
    setOpen(false)
    root.current?.querySelector('button')?.focus()
  }
  const choose = (one: Model | undefined) => {
    if (one === undefined || !one.ok) return
    onChoose(one.id)
    close()
  }
  const onKey = (event: KeyboardEvent) => {
    const { key } = event
    if (key === 'ArrowDown') setActive((i) => Math.min(all.length - 1, i + 1))
    else if (key === 'ArrowUp') setActive((i) => Math.max(0, i - 1))
    else if (key === 'Home') setActive(0)
    else if (key === 'End') setActive(all.length - 1)
    else if (key === 'Enter' || key === ' ') choose(all[active])
    else if (key === 'Escape') close()
    else if (key === 'Tab') return setOpen(false)
    else if (key.length === 1) {
      const found = all.findIndex((one) => one.name.toLowerCase().startsWith(key.toLowerCase()))
      if (found >= 0) setActive(found)
    } else return
    event.preventDefault()
    event.stopPropagation()
  }

  return (
    <div class="picker" ref={root}>
      <button type="button" id={id} class="picker-button" aria-haspopup="listbox" aria-expanded={open} onClick={() => (open ? close() : show())}>
        <span class="hidden">{label}: </span>
        <span class="picker-name">{chosen?.name ?? value ?? t('noModel')}</span>
        <Icon name="chevron" />
      </button>
      {open && (
        <ul
          ref={list}
          class="picker-list"
          role="listbox"
          tabIndex={0}
          aria-label={label}
          aria-activedescendant={`${id}-${active}`}
          onKeyDown={onKey}
        >
          {all.map((one, i) => (
            <Fragment key={one.id}>
              {(i === 0 || all[i - 1].group !== one.group) && (
                <li class="picker-group" role="presentation">
                  {one.group}
                </li>
              )}
              <li
                id={`${id}-${i}`}
                role="option"
                aria-selected={one.id === value}
                aria-disabled={!one.ok}
                data-active={i === active}
                onPointerMove={() => setActive(i)}
                onClick={() => choose(one)}
              >
                <span class="picker-name">{one.name}</span>
                <span class="picker-about">{one.ok ? one.about : one.error}</span>
                {one.id === value && <Icon name="check" />}
              </li>
            </Fragment>
          ))}
          {silent().map((one) => (
            <li key={one.name} class="picker-group bad" role="presentation">
              {one.error}
            </li>
          ))}
        </ul>
      )}
    </div>
  )
}
