// Runs the networks, so that the page stays awake. A message names a graph for each picture that is wanted.
import * as ort from './ort.wasm.bundle.min.mjs'

ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1
ort.env.logLevel = 'error'

const sessions = new Map()

function session(name) {
    const address = new URL(`${name}.onnx`, import.meta.url).href
    if (!sessions.has(name)) {
        const made = ort.InferenceSession.create(address, {executionProviders: ['wasm']})
        made.catch(() => sessions.delete(name))
        sessions.set(name, made)
    }
    return sessions.get(name)
}

function asTensor({data, width, height}) { // RGBA bytes → 1×3×H×W in [0, 1]
    const n = width*height, x = new Float32Array(3*n)
    for (let i = 0; i < n; i++) for (let c = 0; c < 3; c++) x[c*n + i] = data[4*i + c]/255
    return new ort.Tensor('float32', x, [1, 3, height, width])
}

function asPicture(tensor, grey) { // → RGBA bytes; grey by the weights of BT.601, as the library does
    const [, , height, width] = tensor.dims, n = width*height, y = tensor.data
    const data = new Uint8ClampedArray(4*n)
    for (let i = 0; i < n; i++) {
        const rgb = [y[i], y[n + i], y[2*n + i]]
        const g = 0.299*rgb[0] + 0.587*rgb[1] + 0.114*rgb[2]
        for (let c = 0; c < 3; c++) data[4*i + c] = Math.round(255*(grey ? g : rgb[c]))
        data[4*i + 3] = 255
    }
    return {data, width, height}
}

async function run(name, feeds) { // → the outputs, in their order
    const s = await session(name), outputs = await s.run({[s.inputNames[0]]: feeds})
    return s.outputNames.map(output => outputs[output])
}

async function diagnose(name, x) {
    const [probabilities, shut] = await run(name, x)
    return {probabilities: [...probabilities.data], shut: Boolean(shut?.data[0])}
}

onmessage = async ({data: {id, graphs, picture, grey, asks}}) => {
    try {
        const x = asTensor(picture), pictures = {}
        if (asks) return postMessage({id, asks, ...await diagnose(graphs[0], x)})
        for (const name of graphs) await session(name)
        const start = performance.now()
        for (const name of graphs) pictures[name] = asPicture((await run(name, x))[0], grey)
        postMessage({id, pictures, seconds: (performance.now() - start)/1000})
    } catch (e) {
        postMessage({id, error: e.message || String(e)})
    }
}
