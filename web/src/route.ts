// The address: / and /c/<chat>, /side-by-side and /side-by-side/<chat>.
import { signal } from '@preact/signals'

export interface Route {
  view: 'chat' | 'duel'
  id: string | null
}

function read(): Route {
  const [, first, second] = location.pathname.split('/')
  return { view: first === 'side-by-side' ? 'duel' : 'chat', id: second ? decodeURIComponent(second) : null }
}

export const route = signal<Route>(read())

export function go(path: string): void {
  if (path !== location.pathname) window.history.pushState(null, '', path)
  route.value = read()
}

window.addEventListener('popstate', () => {
  route.value = read()
})
