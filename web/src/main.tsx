import { effect, untracked } from '@preact/signals'
import { render } from 'preact'
import { onKey } from './keys'
import { announceWith } from './live'
import { route } from './route'
import { announcement, attempt, history, open, refreshHistory, session, start } from './state'
import './style/fonts.css'
import 'katex/dist/katex.css'
import './style/page.css'
import './style/reading.css'
import './style/duel.css'
import { App } from './view/app'

announceWith((text) => (announcement.value = text))
document.addEventListener('keydown', onKey)
render(<App />, document.getElementById('page')!)
void start()

effect(() => {
  const to = route.value
  if (session.peek()?.signed_in) untracked(() => void open(to)) // what it reads must not call it again
})

// Answers that run in chats which are not open end without an event here; their marks in the history are kept true.
setInterval(() => {
  if (!document.hidden && history.value.some((chat) => chat.running.length > 0)) void attempt(refreshHistory)
}, 4000)
