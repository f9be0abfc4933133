import type { ComponentChildren } from 'preact'
import { useEffect, useRef, useState } from 'preact/hooks'
import { Icon, type IconName } from './icons'

export interface Item {
  label: string
  run?: () => void
  href?: string // a download
  danger?: boolean
}

/** A button that opens a short list of commands. */
export function Menu({ label, items, icon = 'dots', children }: { label: string; items: Item[]; icon?: IconName; children?: ComponentChildren }) {
  const [open, setOpen] = useState(false)
  const root = useRef<HTMLDivElement>(null)
  const entries = () => [...root.current!.querySelectorAll<HTMLElement>('[role=menuitem]')]
  useEffect(() => {
    if (!open) return
    entries()[0]?.focus()
    const outside = (event: Event) => {
      if (!root.current!.contains(event.target as Node)) setOpen(false)
    }
    document.addEventListener('pointerdown', outside)
    return () => document.removeEventListener('pointerdown', outside)
  }, [open])
  const close = () => {
    setOpen(false)
    root.current?.querySelector('button')?.focus()
  }
  const onKey = (event: KeyboardEvent) => {
    if (!open) return
    const all = entries()
    const at = all.indexOf(document.activeElement as HTMLElement)
    if (event.key === 'ArrowDown') all[(at + 1) % all.length].focus()
    else if (event.key === 'ArrowUp') all[(at - 1 + all.length) % all.length].focus()
    else if (event.key === 'Escape') close()
    else if (event.key === 'Tab') return setOpen(false)
    else return
    event.preventDefault()
    event.stopPropagation()
  }
  return (
    <div class="menu" ref={root} onKeyDown={onKey} data-open={open}>
      <button
        type="button"
        class={children ? 'menu-button' : 'icon-button'}
        aria-haspopup="menu"
        aria-expanded={open}
        aria-label={label}
        title={label}
        onClick={() => setOpen(!open)}
      >
        <Icon name={icon} />
        {children}
      </button>
      {open && (
        <div class="menu-list" role="menu" aria-label={label}>
          {items.map((item) =>
            item.href !== undefined ? (
              <a key={item.label} role="menuitem" href={item.href} download onClick={() => setOpen(false)}>
                {item.label}
              </a>
            ) : (
              <button
                key={item.label}
                type="button"
                role="menuitem"
                class={item.danger ? 'danger' : ''}
                onClick={() => {
                  close()
                  item.run!()
                }}
              >
                {item.label}
              </button>
            ),
          )}
        </div>
      )}
    </div>
  )
}
