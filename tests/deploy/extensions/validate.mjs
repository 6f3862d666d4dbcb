// Reads Kubernetes objects as a JSON list; prints what is wrong with each as a JSON list of sentences.
// The schemas (JSON Schema, from the CRDs) know values but let unknown fields through; TypeScript's types refuse those.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import ts from "typescript";

const MODULES = {
  Certificate: "cert-manager/cert-manager.io/v1/Certificate",
  HTTPRoute: "gateway-api/gateway.networking.k8s.io/v1/HTTPRoute",
  Issuer: "cert-manager/cert-manager.io/v1/Issuer",
  PodMonitor: "prometheus-operator/monitoring.coreos.com/v1/PodMonitor",
  ScaledObject: "keda/keda.sh/v1alpha1/ScaledObject",
};
const objects = JSON.parse(readFileSync(0, "utf8"));
const faults = [];

for (const [index, object] of objects.entries()) {
  const module = await import(`@kubernetes-models/${MODULES[object.kind]}`);
  try {
    new module[object.kind](object).validate();
  } catch (error) {
    faults.push(`${index} ${object.kind} ${object.metadata.name}: ${error.message}`);
  }
}

const file = join(process.cwd(), "objects.ts");
const lines = objects.map(
  (object, index) =>
    `export const object${index}: import("@kubernetes-models/${MODULES[object.kind]}").I${object.kind} = ` +
    JSON.stringify(object),
);
const options = {
  module: ts.ModuleKind.NodeNext,
  moduleResolution: ts.ModuleResolutionKind.NodeNext,
  noEmit: true,
  skipLibCheck: true,
  strict: true,
  target: ts.ScriptTarget.ES2022,
};
const host = ts.createCompilerHost(options);
const { readFile, fileExists, getSourceFile } = host;
host.fileExists = (name) => name === file || fileExists(name);
host.readFile = (name) => (name === file ? lines.join("\n") : readFile(name));
host.getSourceFile = (name, version) =>
  name === file ? ts.createSourceFile(name, lines.join("\n"), version) : getSourceFile(name, version);
for (const { messageText } of ts.getPreEmitDiagnostics(ts.createProgram([file], options, host))) {
  faults.push(ts.flattenDiagnosticMessageText(messageText, " "));
}
console.log(JSON.stringify(faults));
