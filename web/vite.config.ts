// Builds the page into the Python package. `hash.txt` records the sources a build was made from, so that a test can
// tell a stale build without Node (see tests/test_page_build.py, which computes the same hash).
import { createHash } from 'node:crypto'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join, relative } from 'node:path'
import { defineConfig, type Plugin } from 'vite'

const here = import.meta.dirname
const out = join(here, '../src/hadal/server/page')

/** Every font KaTeX names comes in three formats; each browser that runs this page reads woff2. */
const woff2Only: Plugin = {
  name: 'woff2-only',
  enforce: 'pre',
  transform(code, id) {
    if (id.includes('katex') && id.endsWith('.css')) return code.replace(/,\s*url\([^)]*\.(woff|ttf)\)\s*format\([^)]*\)/g, '')
  },
}

const hashSources: Plugin = {
  name: 'hash-sources',
  apply: 'build',
  closeBundle() {
    const files = ['src', 'public']
      .flatMap((folder) => readdirSync(join(here, folder), { recursive: true, withFileTypes: true }))
      .filter((entry) => entry.isFile())
      .map((entry) => relative(here, join(entry.parentPath, entry.name)).replaceAll('\\', '/'))
      .concat('index.html', 'vite.config.ts', 'tsconfig.json', 'package.json', 'package-lock.json')
      .sort()
    const hash = createHash('sha256')
    for (const file of files) hash.update(file + '\0').update(readFileSync(join(here, file))).update('\0')
    writeFileSync(join(out, 'hash.txt'), hash.digest('hex') + '\n')
  },
}

export default defineConfig({
  plugins: [woff2Only, hashSources],
  oxc: { jsx: { runtime: 'automatic', importSource: 'preact' } },
  build: {
    outDir: out,
    emptyOutDir: true,
    target: 'es2022',
    modulePreload: { polyfill: false },
    assetsInlineLimit: 0, // data: URLs of scripts and fonts would need a looser Content-Security-Policy
    chunkSizeWarningLimit: 900,
  },
  server: { proxy: { '/api': 'http://127.0.0.1:8123' } },
})
