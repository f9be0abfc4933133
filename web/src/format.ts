// Numbers and days as people read them.
import { language, t } from './i18n'

export function count(n: number): string {
  return n.toLocaleString(language.value)
}

export function tokens(n: number): string {
  return t(n === 1 ? 'token' : 'tokens', { n: count(n) })
}

export function seconds(ms: number): string {
  const s = ms / 1000
  if (s < 9.95) return t('seconds', { s: s.toFixed(1) })
  if (s < 59.5) return t('seconds', { s: Math.round(s) })
  const whole = Math.round(s)
  return t('minutes', { m: Math.floor(whole / 60), s: whole % 60 })
}

/** Two digits that count, down to a millionth of a dollar. */
export function dollars(usd: number): string {
  if (usd === 0) return '$0'
  if (usd >= 1) return '$' + usd.toFixed(2)
  if (usd < 1e-6) return '<$0.000001'
  return '$' + usd.toFixed(Math.max(2, 1 - Math.floor(Math.log10(usd))))
}

/** The heading under which a moment stands in the history. */
export function day(ms: number, now = Date.now()): string {
  const midnight = new Date(now).setHours(0, 0, 0, 0)
  const days = Math.ceil((midnight - ms) / 86_400_000) // 0: today
  if (days <= 0) return t('today')
  if (days === 1) return t('yesterday')
  if (days < 7) return t('week')
  if (days < 30) return t('month')
  return new Date(ms).toLocaleDateString(language.value, { year: 'numeric', month: 'long' })
}

/**
 * How deep a thought went, 1 to 5, named for the zones of the sea: under 100 tokens stays in sunlight, each zone below
 * is about four times as deep, and what passes 6,000 tokens is hadal, like the trenches below 6,000 metres.
 */
export function depth(tokens: number): 1 | 2 | 3 | 4 | 5 {
  return tokens < 100 ? 1 : tokens < 400 ? 2 : tokens < 1500 ? 3 : tokens < 6000 ? 4 : 5
}
