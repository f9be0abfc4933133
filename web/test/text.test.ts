import { describe, expect, test } from 'vitest'
import { Blocks } from '../src/text/blocks'
import { formulaAt } from '../src/text/math'

describe('dollars', () => {
  const formula = (text: string) => {
    const at = text.indexOf('$')
    return formulaAt(text.slice(at), text[at - 1] ?? '')?.tex ?? null
  }
  test.each([
    ['so $x^2$ is', 'x^2'],
    ['$5$ apples', '5'],
    ['($a+b$).', 'a+b'],
    ['$3x = 12$', '3x = 12'],
    ['$10 \\text{ apples}$', '10 \\text{ apples}'],
    ['$2 \\cdot \\$3$', '2 \\cdot \\$3'],
  ])('%s is a formula', (text, tex) => expect(formula(text)).toBe(tex))
  test.each([
    'it costs $5 and $10 more',
    'between $5-$10',
    'US$5 or A$6',
    'from $5/$6 up',
    '$HOME and $PATH, $HOME/$PATH',
    'I have $20, you have $30.',
    '$5 (about 4 US$)',
    '$1,000 for the first and 20% of it in US$.',
    'one $ alone',
    'escaped \\$x$',
    'a blank line $x\n\ny$ between',
  ])('%s is money or a name', (text) => expect(formula(text)).toBeNull())
  test('display and the other brackets', () => {
    expect(formulaAt('$$x\n+y$$ rest')).toEqual({ raw: '$$x\n+y$$', tex: 'x\n+y', display: true })
    expect(formulaAt('\\[x\\] rest')).toMatchObject({ tex: 'x', display: true })
    expect(formulaAt('\\(x\\) rest')).toMatchObject({ tex: 'x', display: false })
    expect(formulaAt('$$never closed')).toBeNull()
  })
})

describe('blocks', () => {
  const samples = [
    'One.\n\nTwo.\n\nThree.',
    'Text\n\n```python\na\n\nb\n```\n\nafter',
    '~~~\n```\n\n~~~\n\nnext\n',
    '1. one\n\n2. two\n\n   more of two\n\nA paragraph.\n\n- a\n- b\n',
    '| a | b |\n|--|--|\n| 1 | 2 |\n\nend',
    'word '.repeat(3000) + '\n\nshort',
    '```\nnever closed\n\n\n' + 'x\n'.repeat(5000),
    '长'.repeat(9000),
  ]
  test.each(samples)('nothing is lost or doubled, however it arrives (%#)', (text) => {
    for (const step of [1, 7, 1000]) {
      if (step === 1 && text.length > 3000) continue
      const blocks = new Blocks()
      for (let end = step; end < text.length + step; end += step) blocks.update(text.slice(0, end))
      expect(blocks.finished.join('') + blocks.open).toBe(text)
    }
  })
  test('a fence and a list stay whole', () => {
    const blocks = new Blocks()
    blocks.update('Text\n\n```python\na\n\nb\n```\n\n1. one\n\n2. two\n\n   more\n\nEnd')
    expect(blocks.finished.map((block) => block.trim())).toEqual(['Text', '```python\na\n\nb\n```', '1. one\n\n2. two\n\n   more'])
    expect(blocks.open).toBe('End')
  })
  test('what is open stays short in an endless paragraph', () => {
    const blocks = new Blocks()
    let text = ''
    for (let i = 0; i < 2000; i++) blocks.update((text += `step ${i} and so on, `))
    expect(blocks.open.length).toBeLessThan(5000)
    expect(blocks.finished.length).toBeGreaterThan(5)
  })
  test('text that was replaced starts anew', () => {
    const blocks = new Blocks()
    blocks.update('One.\n\nTwo.')
    expect(blocks.update('Other.\n\nText')).toBe(true)
    expect([...blocks.finished, blocks.open]).toEqual(['Other.\n\n', 'Text'])
  })
})
