import { useEffect, useState } from 'preact/hooks'
import { t } from '../i18n'
import { askOwn, chooseTask, deal, dealing, difficulty, forget, loadTasks, own, pick, refreshScore, round, score, sides, swap, task, tasks } from '../duel'
import { liveOf } from '../live'
import { chat, draft, modelNamed } from '../state'
import { Icon, IconButton } from './icons'
import { ThinkingControls } from './composer'
import { Answer, Question } from './message'
import { ModelPicker } from './models'
import { PhaseLine } from './phase'

export function SideBySide() {
  const now = sides.value
  const over = round.value?.over ?? true
  useEffect(() => void loadTasks(), [])
  useEffect(() => void refreshScore(), [now?.join('\n'), over, chat.value?.id])
  if (now === null) return <div class="scroll"><p class="empty">{t('noModel')}</p></div>
  return (
    <div class="scroll">
      <div class="duel">
        <h1 class="hidden">{t('sideBySide')}</h1>
        <div class="duel-models">
          <ModelPicker id="left" label={t('leftModel')} value={now[0]} onChoose={(id) => pick(0, id)} />
          <IconButton icon="swap" label={t('swap')} onClick={swap} />
          <ModelPicker id="right" label={t('rightModel')} value={now[1]} onChoose={(id) => pick(1, id)} />
        </div>
        <ScoreBoard models={now} />
        <Deal />
        <Round />
      </div>
    </div>
  )
}

function ScoreBoard({ models }: { models: [string, string] }) {
  const at = score.value
  if (at === null || at.rounds === 0) return <p class="hint center">{t('scoreEmpty')}</p>
  const name = (id: string) => modelNamed(id)?.name ?? id
  return (
    <section class="score" aria-label={t('score')}>
      {models.map((id, side) => {
        const { right, wrong } = at.models[id] ?? { right: 0, wrong: 0 }
        return (
          <div key={side} class="score-side" data-side={side}>
            <span class="score-number">
              {right}
              <small>/{right + wrong}</small>
            </span>
            <span class="score-name">{name(id)}</span>
            <svg class="score-bar" viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true">
              <rect width="100" height="4" class="track" />
              <rect width={(100 * right) / Math.max(1, right + wrong)} height="4" class="fill" />
            </svg>
          </div>
        )
      })}
      <p class="score-line">
        {t('scoreLine', { n: at.rounds, left: at.only[models[0]] ?? 0, right: at.only[models[1]] ?? 0, both: at.both, neither: at.neither })}
        <button type="button" class="quiet" onClick={() => void forget()}>
          {t('forgetRounds')}
        </button>
      </p>
    </section>
  )
}

function Deal() {
  const [question, setQuestion] = useState('')
  const [gold, setGold] = useState('')
  const chosen = task.value
  const busy = dealing.value || round.value?.over === false
  const left = sides.value === null ? null : modelNamed(sides.value[1])
  return (
    <section class="deal" aria-label={t('problem')}>
      <div class="deal-row">
        <fieldset class="segments">
          <legend class="hidden">{t('problem')}</legend>
          {[false, true].map((value) => (
            <label key={String(value)}>
              <input type="radio" name="own" checked={own.value === value} onChange={() => (own.value = value)} />
              <span>{t(value ? 'ownProblem' : 'dealProblem')}</span>
            </label>
          ))}
        </fieldset>
        <span class="spring" />
        {left !== null && (
          <ThinkingControls
            model={left}
            settings={draft.value.settings}
            change={async (to) => {
              draft.value = { ...draft.value, settings: { ...draft.value.settings, ...to } }
            }}
          />
        )}
      </div>
      {own.value ? (
        <form
          class="deal-own"
          onSubmit={(event) => {
            event.preventDefault()
            if (question.trim() === '' || busy) return
            void askOwn(question.trim(), gold).then((well) => {
              if (!well) return
              setQuestion('')
              setGold('') // it was the answer to that question alone
            })
          }}
        >
          <textarea
            id="composer"
            rows={2}
            aria-label={t('ownProblem')}
            placeholder={t('ownPlaceholder')}
            value={question}
            onInput={(event) => setQuestion(event.currentTarget.value)}
            onKeyDown={(event) => {
              if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
                event.preventDefault()
                event.currentTarget.form!.requestSubmit()
              }
            }}
          />
          <div class="deal-row">
            <label class="control">
              <span>{t('gold')}</span>
              <input type="text" value={gold} placeholder={t('goldPlaceholder')} onInput={(event) => setGold(event.currentTarget.value)} />
            </label>
            <span class="spring" />
            <button type="submit" class="primary" disabled={busy || question.trim() === ''}>
              {t('askBoth')}
            </button>
          </div>
        </form>
      ) : (
        chosen !== null && (
          <>
            <div class="deal-row">
              <label class="control">
                <span>{t('task')}</span>
                <select id="task" value={chosen.name} onChange={(event) => chooseTask(event.currentTarget.value)}>
                  {[true, false].map((grown) => {
                    const some = tasks.value.filter((one) => one.grown === grown)
                    return (
                      some.length > 0 && (
                        <optgroup key={String(grown)} label={t(grown ? 'tasksGrown' : 'tasksOther')}>
                          {some.map((one) => (
                            <option key={one.name} value={one.name}>
                              {one.name}
                            </option>
                          ))}
                        </optgroup>
                      )
                    )
                  })}
                </select>
              </label>
              <label class="control slider">
                <span>{t('difficulty')}</span>
                <input
                  id="difficulty"
                  type="range"
                  min={chosen.difficulties[0]}
                  max={chosen.difficulties[1]}
                  value={difficulty.value}
                  onInput={(event) => (difficulty.value = event.currentTarget.valueAsNumber)}
                />
                <output for="difficulty">{difficulty.value}</output>
              </label>
              <button type="button" id="deal" class="primary" disabled={busy} onClick={() => void deal()}>
                {round.value === null ? t('deal') : t('nextProblem')}
              </button>
            </div>
            <p class="hint">
              {chosen.about}
              {chosen.gold_limit !== null && (
                <>
                  {' · '}
                  {difficulty.value > chosen.gold_limit ? <strong>{t('beyond', { d: chosen.gold_limit })}</strong> : t('within', { d: chosen.gold_limit })}
                </>
              )}
            </p>
          </>
        )
      )}
    </section>
  )
}

function Round() {
  const now = round.value
  if (now === null) return <p class="empty">{t('duelIntro')}</p>
  const { duel, question, answers, over } = now
  return (
    <section class="round" aria-label={t('round')}>
      <Question key={question.id} message={question} plain />
      <p class="hint">
        {duel.task !== null ? t('roundTask', { task: duel.task, d: duel.difficulty ?? '' }) : t('roundOwn')}
        {duel.held_out && ` · ${t('heldOut')}`}
        {over && duel.gold !== null && (
          <>
            {' · '}
            <strong>{t('goldIs', { gold: duel.gold })}</strong>
          </>
        )}
      </p>
      <div class="columns">
        {answers.map((answer, i) => (
          <div key={answer.id} class="column" data-side={i}>
            <h2>
              {modelNamed(answer.model)?.name ?? answer.model}
              {answer.verdict?.right != null && <Icon name={answer.verdict.right ? 'check' : 'cross'} />}
            </h2>
            <Answer message={answer} plain />
            {liveOf(answer.id) !== undefined && <PhaseLine message={answer} stoppable />}
          </div>
        ))}
      </div>
    </section>
  )
}
