// Before the first paint, so that a chosen theme does not flash. A file of its own because the policy allows no inline script.
try {
  const { theme, language } = JSON.parse(localStorage.getItem('hadal') ?? '{}')
  if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme
  if (language === 'en' || language === 'zh') document.documentElement.lang = language
} catch {
  // An unreadable store means the defaults.
}
