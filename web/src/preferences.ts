// What the person at this page likes; kept by the server, and here so that the next first paint is right.
import { signal } from '@preact/signals'
import { api } from './api'
import type { Preferences } from './types'

function stored(): Preferences {
  try {
    return JSON.parse(localStorage.getItem('hadal') ?? '{}')
  } catch {
    return {}
  }
}

export const preferences = signal<Preferences>(stored())

function keep(next: Preferences): void {
  preferences.value = next
  try {
    localStorage.setItem('hadal', JSON.stringify(next))
  } catch {
    // A browser that stores nothing: the server still does.
  }
  if (next.theme === 'light' || next.theme === 'dark') document.documentElement.dataset.theme = next.theme
  else delete document.documentElement.dataset.theme
}

export async function load(): Promise<void> {
  keep({ ...preferences.value, ...(await api.preferences()) })
}

export async function prefer(change: Preferences): Promise<void> {
  keep({ ...preferences.value, ...change })
  await api.savePreferences(preferences.value)
}
