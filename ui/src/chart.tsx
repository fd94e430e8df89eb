// One line over the last 15 minutes. The text beside it has the same numbers, so the drawing is not
// the only way to them.
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import { time } from "./format";

interface Props {
  title: string;
  unit: string;
  /** Instants in seconds, and a value for each; null has no line. */
  times: number[];
  values: (number | null)[];
  show: (value: number) => string;
  /** The name of the colour in the style sheet. */
  colour: string;
  /** What the number beside the title is. */
  summary: string;
  theme: string;
}

const HEIGHT = 104;
/** Below this width, in pixels, the labels of the time would overlap. */
const NARROW = 220;
/** The width of each chart, so that all of them show the same time. */
const SECONDS = 900;

function css(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function options(width: number, { title, colour, show }: Props, at: (index: number | null) => void): uPlot.Options {
  const text = css("muted");
  const axis = { stroke: text, font: `12px ${css("font")}`, grid: { stroke: css("line"), width: 1 }, ticks: { show: false } };
  return {
    width,
    height: HEIGHT,
    ms: 1e-3,
    legend: { show: false },
    cursor: { y: false, points: { size: 7 }, drag: { x: false, y: false } },
    padding: [8, 16, 0, 0],
    scales: { x: { time: true, range: (_, _first, last) => [(last ?? 0) - SECONDS, last ?? 0] }, y: { range: (_, _min, max) => [0, Math.max(max * 1.15, 1)] } },
    axes: [
      { ...axis, grid: { show: false }, size: 24, gap: 8, splits: (_, _index, first) => [0, 1, 2, 3].map((part) => first + (part * SECONDS) / 3), values: ({ width }) => (width < NARROW ? ["−15 min", "", "", "now"] : ["−15 min", "−10", "−5", "now"]) },
      { ...axis, space: 32, size: 52, values: (_, splits) => splits.map((value) => show(value)) },
    ],
    series: [{}, { label: title, stroke: css(colour), fill: `${css(colour)}22`, width: 1.5, points: { show: false } }],
    hooks: { setCursor: [(chart) => at(chart.cursor.idx ?? null)] },
  };
}

export function Chart(props: Props) {
  const { title, unit, times, values, show, summary, theme } = props;
  const box = useRef<HTMLDivElement>(null);
  const chart = useRef<uPlot | null>(null);
  const [index, setIndex] = useState<number | null>(null);
  useLayoutEffect(() => {
    const element = box.current;
    if (!element) return;
    const made = new uPlot(options(element.clientWidth || 300, props, setIndex), [times, values], element);
    chart.current = made;
    const resized = new ResizeObserver(() => {
      if (element.clientWidth > 0) made.setSize({ width: element.clientWidth, height: HEIGHT });
    });
    resized.observe(element);
    return () => {
      resized.disconnect();
      made.destroy();
      chart.current = null;
    };
    // Made again for another theme only: uPlot draws with the colours it was made with.
  }, [theme]);
  useEffect(() => chart.current?.setData([times, values]), [times, values]);
  const shown = index === null ? undefined : values[index];
  const at = index === null ? undefined : times[index];
  return (
    <figure class="chart">
      <figcaption>
        <span class="chart-title">{title}</span>
        <span class="chart-value">
          {typeof shown === "number" && at !== undefined
            ? `${show(shown)} ${unit} at ${time(at * 1000)}`
            : summary}
        </span>
      </figcaption>
      <div ref={box} class="chart-box" role="img" aria-label={`${title}, last 15 minutes: ${summary}`} />
    </figure>
  );
}
