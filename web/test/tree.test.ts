import { expect, test } from 'vitest'
import { deepest, path, siblings } from '../src/tree'

const node = (id: string, parent: string | null, role: string) => ({ id, parent, role })
// q1 -> a1 -> q2 -> a2, a3;  q1 -> a4;  and an edited first question q3 -> a5
const tree = [
  node('q1', null, 'user'),
  node('a1', 'q1', 'assistant'),
  node('q2', 'a1', 'user'),
  node('a2', 'q2', 'assistant'),
  node('a3', 'q2', 'assistant'),
  node('a4', 'q1', 'assistant'),
  node('q3', null, 'user'),
  node('a5', 'q3', 'assistant'),
]
const ids = (nodes: { id: string }[]) => nodes.map(({ id }) => id)

test('the path leads from the root to the leaf', () => {
  expect(ids(path(tree, 'a3'))).toEqual(['q1', 'a1', 'q2', 'a3'])
  expect(path(tree, null)).toEqual([])
  expect(path(tree, 'gone')).toEqual([])
})

test('a circle, which an import could hold, ends', () => {
  const circle = [node('x', 'y', 'user'), node('y', 'x', 'assistant')]
  expect(path(circle, 'x')).toEqual([])
  expect(['x', 'y']).toContain(deepest(circle, 'x'))
})

test('siblings stand beside each other, also at the root', () => {
  expect(ids(siblings(tree, tree[1]))).toEqual(['a1', 'a4'])
  expect(ids(siblings(tree, tree[6]))).toEqual(['q1', 'q3'])
})

test('a branch is followed to its newest end', () => {
  expect(deepest(tree, 'a1')).toBe('a3')
  expect(deepest(tree, 'q3')).toBe('a5')
  expect(deepest(tree, 'a4')).toBe('a4')
})
