// The live page: an image in, its bicubic enlargement and that of MRC-Net out. Nothing leaves the browser.
(() => {
    const here = document.currentScript.src
    const root = document.getElementById('live'), at = name => root.querySelector(`[data-live="${name}"]`)
    const MOST = 256, LEAST = 8 // px, the sides of an image that is computed whole
    const say = (text, wrong = false) => {
        at('status').textContent = text
        at('status').classList.toggle('wrong', wrong)
    }
    const address = name => new URL(name, here).href
    let worker, asked = 0, last = null, facts = null

    // --- reading an image

    async function decoded(blob, name) {
        const how = {imageOrientation: 'from-image', premultiplyAlpha: 'none', colorSpaceConversion: 'none'}
        try { return await createImageBitmap(blob, how) } catch {
            throw Error(`${name} cannot be read: it is damaged, or of a kind that browsers do not open. They `
                        + 'open PNG, JPEG, WebP, GIF and BMP; for TIFF and DICOM use "srdiag predict".')
        }
    }

    function cut(bitmap, name, least = LEAST) { // the middle, as pixels over white
        const [w, h] = [bitmap.width, bitmap.height].map(n => Math.min(n, MOST))
        if (Math.min(w, h) < least)
            throw Error(`${name} has ${bitmap.width}×${bitmap.height} px, but the network needs at least `
                        + `${least} px on each side: choose a larger image.`)
        const canvas = document.createElement('canvas')
        canvas.width = w
        canvas.height = h
        const pen = canvas.getContext('2d', {willReadFrequently: true})
        pen.fillStyle = '#fff'
        pen.fillRect(0, 0, w, h)
        pen.drawImage(bitmap, -Math.floor((bitmap.width - w)/2), -Math.floor((bitmap.height - h)/2))
        return pen.getImageData(0, 0, w, h)
    }

    function isGrey({data}) {
        for (let i = 0; i < data.length; i += 4)
            if (data[i] != data[i + 1] || data[i] != data[i + 2]) return false
        return true
    }

    // --- computing

    function started() {
        if (worker) return worker
        worker = new Worker(address('worker.js'), {type: 'module'})
        worker.onmessage = ({data}) => data.asks ? data.id == cells.asked && cells.answer(data)
                                                 : data.id == asked && answer(data)
        worker.onerror = e => {
            e.preventDefault()
            say('The browser could not start the computation. A current Firefox, Chrome, Edge or Safari can.', true)
        }
        return worker
    }

    async function enlarge(blob, name) {
        const id = ++asked
        try {
            const bitmap = await decoded(blob, name), picture = cut(bitmap, name)
            if (id != asked) return
            const model = root.querySelector('input[name=live-model]:checked')
            const scale = +model.dataset.scale
            const whole = picture.width == bitmap.width && picture.height == bitmap.height
            last = {blob, name, picture, scale, model: model.value, bicubic: `bicubic_x${scale}`, whole,
                    size: `${bitmap.width}×${bitmap.height}`}
            say(`Enlarging ${name}. The first time the networks are loaded, which takes some seconds.`)
            root.setAttribute('aria-busy', 'true')
            started().postMessage({id, picture, grey: isGrey(picture), graphs: [last.bicubic, last.model]})
        } catch (e) { say(e.message, true) }
    }

    function answer({pictures, seconds, error}) {
        root.setAttribute('aria-busy', 'false')
        if (error) return say(`${last.name} could not be enlarged: ${error}`, true)
        const titles = {bicubic: 'Bicubic enlargement', sr: 'Enlargement by MRC-Net'}
        for (const [part, graph] of [['bicubic', last.bicubic], ['sr', last.model]]) {
            const {data, width, height} = pictures[graph], canvas = at(part)
            canvas.width = width
            canvas.height = height
            canvas.setAttribute('aria-label', `${titles[part]} of ${last.name}, ${width}×${height} px`)
            canvas.getContext('2d').putImageData(new ImageData(data, width, height), 0, 0)
        }
        const {width, height} = last.picture
        const part = last.whole ? '' : ` Of ${last.size} px this is the middle, ${width}×${height} px.`
        say(`${last.name}: ${width}×${height} px became ${at('sr').width}×${at('sr').height} px in `
            + `${seconds.toFixed(1)} s.${part}`)
        at('result').hidden = false
        document.querySelector('[data-live-static]').hidden = true
        root.dataset.done = asked
    }

    // --- the hand of the reader

    function slide(share) {
        at('slider').value = share
        at('compare').style.setProperty('--share', `${share}%`)
        at('slider').setAttribute('aria-valuetext', `${share} % bicubic on the left, the rest MRC-Net`)
    }

    function open(files) {
        if (files.length) enlarge(files[0], files[0].name)
        else say('What was dropped is no file: save the picture first, and drop the file.', true)
    }

    async function sample(button) {
        const model = root.querySelector(`input[value="${button.dataset.model}"]`)
        model.checked = true
        try { enlarge(await (await fetch(button.querySelector('img').src)).blob(), button.dataset.name) }
        catch { say('The sample cannot be fetched: is the site still served?', true) }
    }

    function listen() {
        at('file').addEventListener('change', e => e.target.files.length && open(e.target.files))
        at('slider').addEventListener('input', e => slide(e.target.value))
        at('compare').addEventListener('pointermove', e => {
            if (e.pointerType == 'touch' || e.buttons != 1) return
            const box = at('compare').getBoundingClientRect()
            slide(Math.round(Math.min(100, Math.max(0, 100*(e.clientX - box.left)/box.width))))
        })
        for (const button of root.querySelectorAll('button[data-model]'))
            button.addEventListener('click', () => sample(button))
        cells.listen()
        for (const input of root.querySelectorAll('input[name=live-model]'))
            input.addEventListener('change', () => last && enlarge(last.blob, last.name))
        for (const kind of ['dragover', 'dragleave', 'drop']) at('drop').addEventListener(kind, e => {
            e.preventDefault()
            at('drop').classList.toggle('over', kind == 'dragover')
            if (kind == 'drop') open(e.dataTransfer.files)
        })
        at('save').addEventListener('click', () => at('sr').toBlob(blob => {
            const link = document.createElement('a')
            link.href = URL.createObjectURL(blob)
            link.download = `${last.name.replace(/\.\w+$/, '')}_${last.model}.png`
            link.click()
            setTimeout(() => URL.revokeObjectURL(link.href), 1000)
        }))
    }

    // --- red cells

    const cells = {
        root: document.getElementById('live-cells'), asked: 0, name: '',
        part: name => cells.root.querySelector(`[data-live="${name}"]`),
        say(text, wrong = false) {
            cells.part('cell-status').textContent = text
            cells.part('cell-status').classList.toggle('wrong', wrong)
            if (wrong) cells.part('cell-result').hidden = true // they are of another picture
        },
        async ask(blob, name) {
            const id = ++cells.asked
            try {
                const picture = cut(await decoded(blob, name), name, 2)
                if (id != cells.asked) return
                cells.name = name
                cells.say(`Looking at ${name}.`)
                started().postMessage({id, picture, graphs: ['redcells_x4'], asks: true})
            } catch (e) { cells.say(e.message, true) }
        },
        decide(p, shut) { // as srdiag.evaluation.thresholds.decide does; a gate that is shut decides nothing
            if (shut) return 'undecided'
            const {classes, positive, positive_from, abstain_below} = facts.cells
            if (positive && p[classes.indexOf(positive)] >= positive_from) return positive
            if (abstain_below && Math.max(...p) < abstain_below) return 'undecided'
            return positive ? classes[1 - classes.indexOf(positive)] : classes[p.indexOf(Math.max(...p))]
        },
        answer({probabilities: p, shut, error}) {
            if (error) return cells.say(`${cells.name} could not be looked at: ${error}`, true)
            const {classes, images, ece} = facts.cells
            const said = classes.map((c, k) => `${c} ${p[k].toFixed(2)}`).join(', ')
            cells.say(`${cells.name}: ${said} (calibrated). Decision: ${cells.decide(p, shut)}. Not for diagnostic use.`)
            classes.forEach((c, k) => { cells.part(`bar-${k}`).value = p[k] })
            cells.part('cell-note').textContent = 'On test cells these probabilities were off by '
                + `${(100*ece).toFixed(1)} points on average (expected calibration error of ${images} cells).`
            cells.part('cell-result').hidden = false
            cells.root.dataset.done = JSON.stringify([cells.asked, ...p])
        },
        listen() {
            for (const button of cells.root.querySelectorAll('button'))
                button.addEventListener('click', async () => {
                    try { cells.ask(await (await fetch(button.querySelector('img').src)).blob(), button.dataset.name) }
                    catch { cells.say('The sample cannot be fetched: is the site still served?', true) }
                })
            cells.part('cell-file').addEventListener('change', ({target: {files}}) =>
                files.length && cells.ask(files[0], files[0].name))
            for (const kind of ['dragover', 'drop']) cells.root.addEventListener(kind, e => {
                e.preventDefault()
                if (kind == 'drop' && e.dataTransfer.files.length)
                    cells.ask(e.dataTransfer.files[0], e.dataTransfer.files[0].name)
            })
        },
    }

    async function begin() {
        if (location.protocol == 'file:')
            return say('A page opened as a file may not compute, and shows a picture. Serve the site, with '
                       + '"python -m http.server -d _site", and open http://localhost:8000/live.html.')
        facts = await (await fetch(address('live.json'))).json()
        if (facts.missing) return say(`This site computes nothing and shows a picture: ${facts.missing}.`)
        at('controls').hidden = false
        cells.root.hidden = false
        say('Ready. Choose an image or a sample.')
        listen()
        slide(50)
    }

    begin().catch(() => say('What the page computes with cannot be fetched, so it shows a picture.', true))
})()
