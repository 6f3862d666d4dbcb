// Which sign is in a video? Asks Triton's `recognize_sign` over gRPC.
//
//     npm ci
//     node recognize_sign.js localhost:8001 clip.mp4
//
// Prints `rank gloss confidence`, best first.
"use strict";

const fs = require("node:fs");
const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");

const proto = protoLoader.loadSync(path.join(__dirname, "inference.proto"), { keepCase: true });
const { GRPCInferenceService } = grpc.loadPackageDefinition(proto).inference;

function recognizeSign(server, video) {
  const client = new GRPCInferenceService(server, grpc.credentials.createInsecure());
  const request = {
    model_name: "recognize_sign",
    // One BYTES element: the file as it is, whatever its container. The server decodes it. Further inputs, where
    // wanted: TOP_K (INT32, int_contents) and MIN_CONFIDENCE (FP32, fp32_contents).
    inputs: [{ name: "VIDEO", datatype: "BYTES", shape: [1], contents: { bytes_contents: [video] } }],
    outputs: [{ name: "GLOSS" }, { name: "CONFIDENCE" }],
    // Where the server has several models: parameters: { model: { string_param: "name" } }
  };
  return new Promise((resolve, reject) => {
    client.ModelInfer(request, { deadline: Date.now() + 60_000 }, (error, response) => {
      client.close();
      // grpc-js ends some messages with an empty note.
      if (error) reject(new Error(error.details.replace(/\s*Resolution note:\s*$/, "")));
      else resolve(response);
    });
  });
}

// Tensors come as raw bytes, little-endian; a string of a BYTES tensor has its length before it, in four bytes.
function strings(raw) {
  const values = [];
  for (let at = 0; at < raw.length; ) {
    const end = at + 4 + raw.readUInt32LE(at);
    values.push(raw.toString("utf8", at + 4, end));
    at = end;
  }
  return values;
}

async function main() {
  const [server, file] = process.argv.slice(2);
  if (!file) throw new Error("usage: node recognize_sign.js SERVER VIDEO");
  const response = await recognizeSign(server, fs.readFileSync(file));
  const raw = (name) => response.raw_output_contents[response.outputs.findIndex((output) => output.name === name)];
  const confidences = raw("CONFIDENCE");
  strings(raw("GLOSS")).forEach((gloss, place) => {
    console.log(place + 1, gloss, confidences.readFloatLE(4 * place).toFixed(4));
  });
}

main().catch((error) => {
  console.error(error.message);
  process.exitCode = 1;
});
