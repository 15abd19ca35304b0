/**
 * The charts of docs/BENCHMARKS.md, drawn from the JSON that `npm run bench` prints.
 *
 * @module
 */
import * as echarts from 'echarts';

const WIDTH = 860;
const ROW_PIXELS = 26;
const MARGIN_PIXELS = 130;

interface Bars {
  readonly title: string;
  readonly unit: string;
  readonly categories: readonly string[];
  /** A value for each category; undefined: not measured. */
  readonly series: Readonly<Record<string, readonly (number | undefined)[]>>;
  /** A line at this value, with its name. */
  readonly mark?: { readonly name: string; readonly value: number };
}

function draw({ title, unit, categories, series, mark }: Bars): string {
  const rows = categories.length * Object.keys(series).length;
  const chart = echarts.init(null, null, {
    renderer: 'svg',
    ssr: true,
    width: WIDTH,
    height: MARGIN_PIXELS + rows * ROW_PIXELS,
  });
  chart.setOption({
    animation: false,
    backgroundColor: '#fff',
    title: { text: title, left: 'center' },
    legend: { top: 32 },
    grid: { left: 230, right: 90, top: 70, bottom: 50 },
    xAxis: { type: 'value', name: unit, nameLocation: 'middle', nameGap: 28 },
    yAxis: { type: 'category', data: [...categories], inverse: true },
    series: Object.entries(series).map(([name, values], index) => ({
      name,
      type: 'bar',
      data: values.map((value) => value ?? null),
      label: {
        show: true,
        position: 'right',
        formatter: ({ value }: { value?: unknown }) =>
          typeof value === 'number' ? value.toLocaleString('en', { maximumFractionDigits: 1 }) : '',
      },
      ...(mark !== undefined && index === 0
        ? {
            markLine: {
              symbol: 'none',
              label: { formatter: mark.name },
              data: [{ xAxis: mark.value }],
            },
          }
        : {}),
    })),
  });
  const svg = chart.renderToSVGString();
  chart.dispose();
  return svg;
}

interface LabResult {
  readonly both: Readonly<Record<string, number>>;
  readonly pair: Readonly<Record<string, number>>;
  /** With `--qemu`; a figure that could not be taken is missing. */
  readonly qemu?: { readonly figures: Readonly<Record<string, number>> };
}

function labChart({ both, pair, qemu }: LabResult): string {
  const percent = (names: readonly string[], figures: Readonly<Record<string, number>>) =>
    names.map((name) => {
      const value = figures[name];
      return value === undefined ? undefined : (100 * value) / both[name]!;
    });
  // Waits are in the table: here higher is better throughout.
  const names = Object.keys(pair).filter((name) => !name.endsWith(' ms'));
  return draw({
    title: 'A protected pair, relative to the plain bridge with both guests serving',
    unit: '%',
    categories: names.map((name) => name.replace(' Mbit/s', '').replace('/s', '')),
    series: {
      'protected pair': percent(names, pair),
      ...(qemu === undefined ? {} : { "QEMU's own objects": percent(names, qemu.figures) }),
    },
  });
}

interface SocketCase {
  readonly system: string;
  readonly payload: number;
  readonly connections: number;
  readonly mode: string;
  readonly framesPerSecond: number;
}

function socketsChart({ all }: { readonly all: readonly SocketCase[] }): string {
  const nameOf = ({ mode, payload, connections }: SocketCase): string =>
    `${mode}, ${payload} bytes, ${connections}`;
  const categories = [...new Set(all.map(nameOf))];
  const systems = [...new Set(all.map(({ system }) => system))];
  const value = (system: string, category: string): number | undefined => {
    const found = all.find((result) => result.system === system && nameOf(result) === category);
    return found === undefined ? undefined : found.framesPerSecond / 1_000;
  };
  return draw({
    title: "Comparing over sockets: colo-proxy, QEMU's colo-compare, an ideal relay",
    unit: 'thousand frames a second',
    categories,
    series: Object.fromEntries(
      systems.map((system) => [system, categories.map((category) => value(system, category))]),
    ),
  });
}

function microChart({ nanoseconds }: { readonly nanoseconds: Record<string, number> }): string {
  return draw({
    title: 'Parts of the packet path',
    unit: 'ns a frame',
    categories: Object.keys(nanoseconds),
    series: { 'ns a frame': Object.values(nanoseconds) },
    mark: { name: '1 µs', value: 1_000 },
  });
}

/** Names and SVG texts of the charts. `results` is what `npm run bench` collected. */
export function renderCharts(results: Readonly<Record<string, unknown>>): [string, string][] {
  return [
    ['lab', labChart(results['lab'] as LabResult)],
    ['sockets', socketsChart(results['sockets'] as { all: SocketCase[] })],
    ['micro', microChart(results['micro'] as { nanoseconds: Record<string, number> })],
  ];
}
