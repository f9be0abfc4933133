// The shapes that the server sends and takes, as its /api describes them.

export interface Price {
  hit: number | null // USD per million tokens
  miss: number | null
  output: number | null
  hour: number | null // USD per hour of this machine
  note: string | null
}

export interface Model {
  id: string
  name: string
  source: 'local' | 'upstream'
  group: string
  about: string
  context: number | null
  max_tokens: number | null
  thinking: 'optional' | 'always' | 'never' | 'unknown'
  efforts: string[]
  budget: boolean
  answer_now: boolean
  continue: boolean
  single_turn: boolean
  sampling: { temperature?: number; top_p?: number }
  tasks: string[]
  examples: string[]
  price: Price | null
  ok: boolean
  error: string | null
}

export interface Models {
  default: string | null
  pairs: [string, string][]
  models: Model[]
  upstreams: { name: string; url: string; ok: boolean; error: string | null }[]
}

export interface Settings {
  system?: string | null
  thinking?: boolean | null
  effort?: string | null
  budget?: number | null
  temperature?: number | null
  top_p?: number | null
  top_k?: number | null
  min_p?: number | null
  max_tokens?: number | null
  seed?: number | null
  stop?: string[] | null
  presence_penalty?: number | null
  frequency_penalty?: number | null
  repetition_penalty?: number | null
}

export interface Usage {
  prompt_tokens: number
  prompt_cache_hit_tokens: number
  prompt_cache_miss_tokens: number
  completion_tokens: number
  reasoning_tokens: number
  total_tokens: number
  estimated: boolean
}

export interface Verdict {
  right: boolean | null
  note: string | null
  gold: string | null
  task: string | null
  by: 'task' | 'user'
}

export type Status = 'running' | 'done' | 'stopped' | 'interrupted' | 'failed'
export type Phase = 'queued' | 'reading' | 'thinking' | 'answering'

export interface Message {
  id: string
  chat: string
  parent: string | null
  role: 'user' | 'assistant'
  created: number
  content: string
  thought: string | null
  status: Status
  finish_reason: 'stop' | 'length' | null
  error: string | null
  model: string | null
  settings: Settings | null
  thought_ms: number | null
  wait_ms: number | null
  total_ms: number | null
  usage: Usage | null
  tokens_per_second: number | null
  cost: { usd: number | null; note: string | null; r1_usd: number | null } | null
  answered_now: boolean
  verdict: Verdict | null
}

export interface Duel {
  models: string[]
  task: string | null
  difficulty: number | null
  gold: string | null
  held_out: boolean
}

export interface Snippet {
  message: string | null
  parts: [string, boolean][]
}

export interface Chat {
  id: string
  kind: 'chat' | 'duel'
  title: string
  titled: boolean
  created: number
  updated: number
  model: string | null
  settings: Settings
  leaf: string | null
  running: string[]
  count: number
  tokens: number
  cost_usd: number | null
  duel: Duel | null
  snippet?: Snippet | null
}

export interface Task {
  name: string
  about: string
  difficulties: [number, number]
  default: number
  gold_limit: number | null
  grown: boolean
}

export interface Score {
  rounds: number
  models: Record<string, { right: number; wrong: number }>
  only: Record<string, number>
  both: number
  neither: number
}

export interface Session {
  login: boolean
  signed_in: boolean
  version: string
  quickstart: boolean
}

export interface Preferences {
  theme?: 'system' | 'light' | 'dark'
  language?: 'auto' | 'en' | 'zh'
  keepThoughts?: boolean // thoughts stay open after the answer begins
  singleKeys?: boolean // shortcuts without a modifier
}
