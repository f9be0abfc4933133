// The one place that talks to the server.
import type { Chat, Message, Models, Phase, Preferences, Score, Session, Settings, Task } from './types'

/** What the server refused or could not do; `message` is its own line, made to be shown. */
export class ApiError extends Error {
  constructor(
    readonly status: number, // 0: the server could not be reached
    message: string,
  ) {
    super(message)
  }
}

async function send(method: string, path: string, body?: unknown, type = 'application/json'): Promise<Response> {
  let response: Response
  try {
    response = await fetch('/api' + path, {
      method,
      headers: body === undefined ? {} : { 'Content-Type': type },
      body: body === undefined ? undefined : typeof body === 'string' ? body : JSON.stringify(body),
    })
  } catch {
    throw new ApiError(0, '')
  }
  if (!response.ok) {
    const text = await response.text()
    let message = `${response.status} ${response.statusText}`
    try {
      message = JSON.parse(text).error.message
    } catch {
      // Not one of the server's own errors (a proxy's page, say): the status line is all that is known.
    }
    throw new ApiError(response.status, message)
  }
  return response
}

async function ask<T>(method: string, path: string, body?: unknown): Promise<T> {
  return (await send(method, path, body)).json() as Promise<T>
}

const id = encodeURIComponent

export interface Started {
  question: Message | null
  answer: Message
  chat: Chat
}

export const api = {
  session: () => ask<Session>('GET', '/session'),
  signIn: (key: string) => send('POST', '/session', { key }),
  signOut: () => send('DELETE', '/session'),
  models: () => ask<Models>('GET', '/models'),
  preferences: () => ask<Preferences>('GET', '/preferences'),
  savePreferences: (preferences: Preferences) => ask<Preferences>('PUT', '/preferences', preferences),

  chats: (query: { kind: 'chat' | 'duel' | 'all'; q?: string; before?: number; limit?: number }) => {
    const parameters = new URLSearchParams()
    for (const [key, value] of Object.entries(query)) if (value) parameters.set(key, String(value))
    return ask<{ chats: Chat[]; more: boolean }>('GET', `/chats?${parameters}`)
  },
  chat: (chat: string) => ask<Chat & { messages: Message[] }>('GET', `/chats/${id(chat)}`),
  newChat: (body: { model?: string; settings?: Settings }) => ask<Chat>('POST', '/chats', body),
  changeChat: (chat: string, body: { title?: string; model?: string; settings?: Settings; leaf?: string }) =>
    ask<Chat>('PATCH', `/chats/${id(chat)}`, body),
  deleteChat: (chat: string) => send('DELETE', `/chats/${id(chat)}`),
  deleteChats: () => send('DELETE', '/chats'),

  answer: (chat: string, body: { content?: string; parent: string | null; model?: string; settings?: Settings }) =>
    ask<Started>('POST', `/chats/${id(chat)}/answers`, body),
  message: (message: string) => ask<Message>('GET', `/answers/${id(message)}`),
  stop: (message: string) => ask<Message>('POST', `/answers/${id(message)}/stop`),
  answerNow: (message: string) => send('POST', `/answers/${id(message)}/answer-now`),
  continue: (message: string) => ask<Message>('POST', `/answers/${id(message)}/continue`),
  judge: (message: string, right: boolean | null) => ask<Message>('PATCH', `/answers/${id(message)}`, { right }),

  exportUrl: (chat: string | null, format: 'json' | 'markdown', thoughts: boolean) =>
    `/api/${chat === null ? '' : `chats/${id(chat)}/`}export?format=${format}&thoughts=${thoughts}`,
  import: async (text: string, markdown: boolean) =>
    (await (await send('POST', '/import', text, markdown ? 'text/markdown' : 'application/json')).json()) as { chats: Chat[] },

  tasks: () => ask<{ tasks: Task[] }>('GET', '/tasks'),
  duel: (body: { models: string[]; task?: string; difficulty?: number; question?: string; gold?: string; settings?: Settings }) =>
    ask<{ chat: Chat; question: Message; answers: Message[] }>('POST', '/duels', body),
  score: (models: string[]) => ask<Score>('GET', `/duels/score?models=${models.map(id).join(',')}`),
  deleteDuels: () => send('DELETE', '/duels'),
}

export interface AnswerEvents {
  snapshot(event: { message: Message; phase: Phase; tokens: number; tokens_per_second: number | null }): void
  phase(event: { phase: Phase }): void
  delta(event: { thought?: string; answer?: string }): void
  moved(event: { thought: string }): void
  speed(event: { tokens: number; tokens_per_second: number | null; elapsed_ms: number }): void
  done(event: { message: Message; chat: Chat | null }): void // null: the chat was deleted meanwhile
  lost(): void // the stream is gone for good (the answer too, or the server)
}

/** Follows an answer to its end; a broken connection is taken up again by the browser. Returns how to leave. */
export function follow(message: string, on: AnswerEvents): () => void {
  const source = new EventSource(`/api/answers/${id(message)}/events`)
  for (const name of ['snapshot', 'phase', 'delta', 'moved', 'speed', 'done'] as const) {
    source.addEventListener(name, (event) => {
      if (name === 'done') source.close()
      on[name](JSON.parse((event as MessageEvent<string>).data))
    })
  }
  source.addEventListener('error', () => {
    if (source.readyState === EventSource.CLOSED) on.lost()
  })
  return () => source.close()
}
