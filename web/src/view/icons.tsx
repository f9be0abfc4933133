// The page's own line icons, 20 by 20.
const paths = {
  menu: 'M3 5.5h14M3 10h14M3 14.5h9',
  plus: 'M10 4v12M4 10h12',
  versus: 'M3.5 4.5h5v11h-5zM11.5 4.5h5v11h-5z',
  search: 'M8.8 14.1a5.3 5.3 0 1 0 0-10.6 5.3 5.3 0 0 0 0 10.6M13 13l4 4',
  dots: 'M4.5 10h.01M10 10h.01M15.5 10h.01',
  sliders: 'M4 6h6M14 6h2M4 14h2M10 14h6M12 4.2v3.6M8 12.2v3.6',
  send: 'M10 16.5V4M4.5 9 10 3.5 15.5 9',
  stop: 'M6 6h8v8H6z',
  chevron: 'M6 8l4 4 4-4',
  left: 'M12 5l-5 5 5 5',
  right: 'M8 5l5 5-5 5',
  copy: 'M7.5 7.5h8v9h-8zM12.5 7.5v-4h-8v9h3',
  redo: 'M15.5 7A6.2 6.2 0 1 0 16 11.5M16 3.5V7.3h-3.8',
  edit: 'M4 16l.7-3.3L13 4.4l2.6 2.6-8.3 8.3L4 16z',
  more: 'M5 4v12M9 6l5 4-5 4z',
  check: 'M4.5 10.5l3.7 3.7 7.3-8',
  cross: 'M5.5 5.5l9 9M14.5 5.5l-9 9',
  info: 'M10 9v5M10 6.2v.01M10 17a7 7 0 1 0 0-14 7 7 0 0 0 0 14z',
  down: 'M10 4v11M5 10.5l5 5 5-5',
  swap: 'M4 7h11M12 4l3 3-3 3M16 13H5M8 10l-3 3 3 3',
  gear: 'M10 12.6a2.6 2.6 0 1 0 0-5.2 2.6 2.6 0 0 0 0 5.2M10 2.8v2M10 15.2v2M4.9 4.9l1.4 1.4M13.7 13.7l1.4 1.4M2.8 10h2M15.2 10h2M4.9 15.1l1.4-1.4M13.7 6.3l1.4-1.4',
  keyboard: 'M2.5 5.5h15v9h-15zM5.5 8.5h.01M8.5 8.5h.01M11.5 8.5h.01M14.5 8.5h.01M7 11.7h6',
  box: 'M10 3v8M6.5 7.8 10 11.3l3.5-3.5M3.5 12.5v4h13v-4',
  surface: 'M10 15.5V7M6.5 10 10 6.5l3.5 3.5M3 3.5c1.2 0 1.2 1 2.3 1s1.2-1 2.4-1 1.2 1 2.3 1 1.2-1 2.3-1 1.2 1 2.4 1 1.1-1 2.3-1',
} as const

export type IconName = keyof typeof paths

export function Icon({ name }: { name: IconName }) {
  return (
    <svg class="icon" viewBox="0 0 20 20" aria-hidden="true">
      <path d={paths[name]} />
    </svg>
  )
}

export function IconButton(props: { icon: IconName; label: string; onClick: () => void; class?: string; disabled?: boolean }) {
  return (
    <button
      type="button"
      class={`icon-button ${props.class ?? ''}`}
      aria-label={props.label}
      title={props.label}
      disabled={props.disabled}
      onClick={props.onClick}
    >
      <Icon name={props.icon} />
    </button>
  )
}

/** The mark of hadal: a trench, and a light at its bottom. */
export function Mark() {
  return (
    <svg class="mark" viewBox="0 0 64 64" aria-hidden="true">
      <path d="M6 15H16L32 49L48 15H58" />
      <path class="faint" d="M23 15L32 34L41 15" />
      <circle class="glow" cx="32" cy="55" r="9" />
      <circle class="glow" cx="32" cy="55" r="5.8" />
      <circle class="lure" cx="32" cy="55" r="3.2" />
    </svg>
  )
}

/** Five strokes, as many of them lit as zones of the sea the thought went down. */
export function Depth({ zone }: { zone: number }) {
  return (
    <svg class="depth" viewBox="0 0 14 20" aria-hidden="true" data-zone={zone}>
      {[0, 1, 2, 3, 4].map((i) => (
        <path key={i} class={i < zone ? 'lit' : ''} d={`M${1 + i * 0.9} ${2.5 + i * 3.75}H${13 - i * 0.9}`} />
      ))}
    </svg>
  )
}
