// The words of the page, in the language that was chosen or that the browser asks for.
import { computed } from '@preact/signals'
import { preferences } from './preferences'
import { en } from './strings/en'
import { zh } from './strings/zh'

export const language = computed<'en' | 'zh'>(() => {
  const chosen = preferences.value.language
  if (chosen === 'en' || chosen === 'zh') return chosen
  return navigator.language.toLowerCase().startsWith('zh') ? 'zh' : 'en'
})

export function t(key: keyof typeof en, values: Record<string, string | number> = {}): string {
  const words: string = (language.value === 'zh' ? zh : en)[key]
  return words.replace(/\{(\w+)\}/g, (_, name: string) => String(values[name] ?? ''))
}
