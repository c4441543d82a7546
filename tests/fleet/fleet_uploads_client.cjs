// SPDX-License-Identifier: Apache-2.0
// Runs one job by tus-js-client: `node fleet_uploads_client.cjs MODULE JOB`, the folder of
// tus-js-client and JSON. Prints what came of it, as JSON.
'use strict'
const crypto = require('node:crypto')
const fs = require('node:fs')
const tus = require(process.argv[2])
const job = JSON.parse(process.argv[3])
const data = fs.readFileSync(job.file)
const said = { url: null, chunks: [], statuses: [], outcome: null }

function finish(outcome) {
  said.outcome = outcome
  said.url = upload.url
  console.log(JSON.stringify(said))
}

const upload = new tus.Upload(job.stream ? fs.createReadStream(job.file) : data, {
  endpoint: job.endpoint,
  uploadUrl: job.url,
  uploadSize: data.length,
  chunkSize: job.chunk,
  retryDelays: job.retries || null,
  overridePatchMethod: Boolean(job.override),
  storeFingerprintForResuming: false,
  // The library can encode text only, and two of our values are bytes.
  headers: { 'Upload-Metadata': job.metadata },
  onBeforeRequest(request) {
    const offset = Number(request.getHeader('Upload-Offset'))
    if (job.checksum && request.getHeader('Upload-Offset') !== undefined) {
      const piece = data.subarray(offset, offset + job.chunk)
      const digest = crypto.createHash(job.checksum).update(piece).digest('base64')
      request.setHeader('Upload-Checksum', `${job.checksum} ${digest}`)
    }
  },
  onAfterResponse(request, response) {
    said.statuses.push([request.getMethod(), response.getStatus()])
  },
  onChunkComplete(size, accepted) {
    said.chunks.push([size, accepted])
    if (job.abort && accepted >= job.abort) {
      upload.abort(Boolean(job.terminate)).then(() => finish('aborted'))
    }
  },
  onError(error) {
    const response = error.originalResponse
    finish(response ? response.getStatus() : String(error))
  },
  onSuccess() {
    finish('success')
  },
})
upload.start()
