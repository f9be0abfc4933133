import { signal } from '@preact/signals'
import type { ComponentChildren } from 'preact'
import { useRef, useState } from 'preact/hooks'
import { api } from '../api'
import { day } from '../format'
import { t } from '../i18n'
import { go, route } from '../route'
import { attempt, history, importFile, more, olderHistory, pathOf, query, refreshHistory, rename, sought } from '../state'
import type { Chat } from '../types'
import { dialog } from './dialogs'
import { Icon, IconButton, Mark } from './icons'
import { Menu } from './menu'

const wide = matchMedia('(min-width: 60rem)')
export const sidebarOpen = signal(wide.matches)
export const sidebarCovers = () => sidebarOpen.value && !wide.matches
wide.addEventListener('change', () => (sidebarOpen.value = wide.matches))

/** On a phone the sidebar covers the page, so it goes once something was chosen. */
function visit(path: string): void {
  if (!wide.matches) sidebarOpen.value = false
  go(path)
}

function Link({ to, find, children, ...rest }: { to: string; find?: string | null; children: ComponentChildren; class?: string; 'aria-current'?: 'page'; title?: string }) {
  return (
    <a
      href={to}
      {...rest}
      onClick={(event) => {
        if (event.metaKey || event.ctrlKey || event.shiftKey) return // a tab of its own
        event.preventDefault()
        sought.value = find ?? null
        visit(to)
      }}
    >
      {children}
    </a>
  )
}

export function Sidebar() {
  const file = useRef<HTMLInputElement>(null)
  const open = sidebarOpen.value
  const duel = route.value.view === 'duel'
  return (
    <>
      {open && <div class="veil" onClick={() => (sidebarOpen.value = false)} />}
      <nav class="sidebar" id="sidebar" aria-label={t('chats')} hidden={!open}>
        <div class="brand">
          <Mark />
          <span class="brand-name">hadal</span>
          <IconButton icon="menu" label={t('closeSidebar')} onClick={() => (sidebarOpen.value = false)} />
        </div>
        <Link to="/" class="nav-link" aria-current={!duel && route.value.id === null ? 'page' : undefined}>
          <Icon name="plus" />
          {t('newChat')}
        </Link>
        <Link to="/side-by-side" class="nav-link" aria-current={duel && route.value.id === null ? 'page' : undefined}>
          <Icon name="versus" />
          {t('sideBySide')}
        </Link>
        <Search />
        <History />
        <div class="sidebar-foot">
          <Menu
            label={t('data')}
            icon="box"
            items={[
              { label: t('import'), run: () => file.current!.click() },
              { label: t('exportAllJson'), href: api.exportUrl(null, 'json', true) },
              { label: t('exportAllMarkdown'), href: api.exportUrl(null, 'markdown', true) },
              { label: t('exportAllPlain'), href: api.exportUrl(null, 'markdown', false) },
              { label: t('deleteAll'), danger: true, run: () => (dialog.value = { name: 'deleteAll' }) },
            ]}
          />
          <IconButton icon="gear" label={t('preferences')} onClick={() => (dialog.value = { name: 'preferences' })} />
          <IconButton icon="keyboard" label={t('shortcuts')} onClick={() => (dialog.value = { name: 'shortcuts' })} />
          <input
            ref={file}
            id="import"
            type="file"
            class="hidden"
            tabIndex={-1}
            aria-label={t('import')}
            accept=".json,.md,.markdown,application/json,text/markdown"
            onChange={(event) => {
              const chosen = event.currentTarget.files?.[0]
              event.currentTarget.value = ''
              if (chosen) void importFile(chosen)
            }}
          />
        </div>
      </nav>
    </>
  )
}

let typing = 0

function Search() {
  return (
    <div class="search" role="search">
      <Icon name="search" />
      <input
        id="search"
        type="search"
        value={query.value}
        placeholder={t('search')}
        aria-label={t('searchLabel')}
        onInput={(event) => {
          query.value = event.currentTarget.value
          clearTimeout(typing)
          typing = window.setTimeout(() => void attempt(refreshHistory), 150)
        }}
      />
    </div>
  )
}

function History() {
  const chats = history.value
  if (chats.length === 0) {
    const searching = query.value.trim() !== ''
    return <p class="history-empty">{searching ? t('nothingFound') : route.value.view === 'duel' ? t('noRounds') : t('noChats')}</p>
  }
  const groups = new Map<string, Chat[]>()
  for (const one of chats) {
    const heading = day(one.updated)
    groups.set(heading, [...(groups.get(heading) ?? []), one])
  }
  return (
    <div class="history">
      {[...groups].map(([heading, rows]) => (
        <section key={heading} aria-label={heading}>
          <h2>{heading}</h2>
          <ul>
            {rows.map((one) => (
              <Row key={one.id} chat={one} />
            ))}
          </ul>
        </section>
      ))}
      {more.value && (
        <button type="button" class="quiet" onClick={() => void olderHistory()}>
          {t('older')}
        </button>
      )}
    </div>
  )
}

function Row({ chat }: { chat: Chat }) {
  const [renaming, setRenaming] = useState(false)
  const title = chat.title || t('untitled')
  if (renaming) {
    const finish = (to: string | null) => {
      setRenaming(false)
      if (to !== null && to !== chat.title) void rename(chat.id, to)
    }
    return (
      <li class="row">
        <input
          class="rename"
          aria-label={t('rename')}
          defaultValue={chat.title}
          ref={(node) => node?.focus()}
          onBlur={(event) => finish(event.currentTarget.value.trim())}
          onKeyDown={(event) => {
            event.stopPropagation()
            if (event.key === 'Enter' && !event.isComposing) finish(event.currentTarget.value.trim())
            if (event.key === 'Escape') finish(null)
          }}
        />
      </li>
    )
  }
  return (
    <li class="row">
      <Link to={pathOf(chat)} find={chat.snippet?.message} aria-current={route.value.id === chat.id ? 'page' : undefined} title={title}>
        <span class="row-title">
          {chat.kind === 'duel' && <Icon name="versus" />}
          {chat.running.length > 0 && <span class="row-running" role="img" aria-label={t('running')} />}
          {title}
        </span>
        {chat.snippet && (
          <span class="row-snippet">
            {chat.snippet.parts.map(([part, match], i) => (match ? <mark key={i}>{part}</mark> : <span key={i}>{part}</span>))}
          </span>
        )}
      </Link>
      <Menu label={t('chatMenu', { title })} items={chatItems(chat, () => setRenaming(true))} />
    </li>
  )
}

function chatItems(chat: Chat, startRename: () => void) {
  return [
    { label: t('rename'), run: startRename },
    { label: t('exportJson'), href: api.exportUrl(chat.id, 'json', true) },
    { label: t('exportMarkdown'), href: api.exportUrl(chat.id, 'markdown', true) },
    { label: t('exportPlain'), href: api.exportUrl(chat.id, 'markdown', false) },
    { label: t('delete'), danger: true, run: () => (dialog.value = { name: 'delete', chat }) },
  ]
}
