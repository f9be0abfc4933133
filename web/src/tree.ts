// A chat is a tree of messages: edits and new answers are siblings. The page shows one path from a root to a leaf.

interface Node {
  id: string
  parent: string | null
  role: string
}

/** From the root to `leaf`; empty where the leaf is unknown. */
export function path<T extends Node>(messages: readonly T[], leaf: string | null): T[] {
  const byId = new Map(messages.map((message) => [message.id, message]))
  const nodes: T[] = []
  for (let at = leaf; at !== null; ) {
    const node = byId.get(at)
    if (node === undefined || nodes.length > messages.length) return []
    nodes.unshift(node)
    at = node.parent
  }
  return nodes
}

/** The branches at a message, itself among them, in the order in which they were made. */
export function siblings<T extends Node>(messages: readonly T[], message: Node): T[] {
  return messages.filter((other) => other.parent === message.parent && other.role === message.role)
}

/** Where a branch ends when its newest message is followed at each fork. */
export function deepest<T extends Node>(messages: readonly T[], from: string): string {
  const newestChild = new Map<string, string>()
  for (const message of messages) if (message.parent !== null) newestChild.set(message.parent, message.id)
  let at = from
  const seen = new Set<string>()
  while (newestChild.has(at) && !seen.has(at)) {
    seen.add(at)
    at = newestChild.get(at)!
  }
  return at
}
