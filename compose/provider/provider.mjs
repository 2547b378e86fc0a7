// An OpenID Connect provider for the tests and the demo: whoever comes may be anybody, with any password. For nothing else.
//
//   CLIENT_SECRET=… node provider.mjs FOLDER PORT REDIRECT_URI CLIENT_ID
//
// FOLDER is what `prepare` prints. Prints the issuer's URL once it listens. Names that begin with `unverified` have an address
// that was not verified.
import { createServer } from "node:http";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, port, redirectUri, clientId] = process.argv.slice(2);
const library = join(folder, "node_modules/oidc-provider/lib/index.js");
const { default: Provider } = await import(pathToFileURL(library));

const configuration = {
  clients: [
    {
      client_id: clientId,
      client_secret: process.env.CLIENT_SECRET,
      redirect_uris: [redirectUri],
      grant_types: ["authorization_code"],
      response_types: ["code"],
    },
  ],
  claims: { openid: ["sub"], email: ["email", "email_verified"], profile: ["preferred_username"] },
  pkce: { required: () => true },
  findAccount: (_, name) => ({
    accountId: name,
    claims: () => ({
      sub: name,
      email: `${name}@example.org`,
      email_verified: !name.startsWith("unverified"),
      preferred_username: name,
    }),
  }),
};

const server = createServer();
server.listen(Number(port), "127.0.0.1", () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  server.on("request", new Provider(issuer, configuration).callback());
  console.log(issuer);
});
