// The official npm library of Standard Webhooks, and Node's own Ed25519 for `v1a`, against a delivery. Arguments: the folder of the
// package, a file with the delivery's secret, public key, headers and body.

import assert from "node:assert/strict";
import { createPublicKey, verify } from "node:crypto";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [folder, file] = process.argv.slice(2);
const { Webhook, WebhookVerificationError } = createRequire(`${folder}/`)("standardwebhooks");
const { secret, public_key, headers, body } = JSON.parse(readFileSync(file, "utf8"));
const webhook = new Webhook(secret);
const forged = body.replace("completed", "failed");

const event = webhook.verify(body, headers);
for (const [changed, text] of [
  [headers, forged],
  [{ ...headers, "webhook-id": "evt_another" }, body],
  [{ ...headers, "webhook-timestamp": String(Number(headers["webhook-timestamp"]) - 1) }, body],
]) {
  assert.throws(() => webhook.verify(text, changed), WebhookVerificationError);
}

const x = Buffer.from(public_key.replace(/^whpk_/, ""), "base64").toString("base64url");
const key = createPublicKey({ key: { kty: "OKP", crv: "Ed25519", x }, format: "jwk" });
const signatures = headers["webhook-signature"].split(" ").filter((one) => one.startsWith("v1a,"));
const signs = (text) =>
  signatures.some((one) => {
    const signed = `${headers["webhook-id"]}.${headers["webhook-timestamp"]}.${text}`;
    return verify(null, Buffer.from(signed), key, Buffer.from(one.slice(4), "base64"));
  });
assert.ok(signs(body) && !signs(forged));
console.log(event.type);
