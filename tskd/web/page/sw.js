// Keeps every file of the folder, so that the page works without a network. Files come from the cache alone: a new
// version takes over as a whole, when no page of the old one is open any more.
importScripts("files.js"); // self.TSKD: version, policy, and the digest of every file

const MINE = `tskd-web ${registration.scope} `; // an origin may hold several models, and other people's pages
const CACHE = MINE + TSKD.version;

self.addEventListener("install", (event) => event.waitUntil(keepAll()));

self.addEventListener("activate", (event) => event.waitUntil(dropOlder().then(() => clients.claim())));

self.addEventListener("fetch", (event) => {
  if (event.request.method === "GET") event.respondWith(answer(event.request));
});

async function keepAll() {
  const cache = await caches.open(CACHE);
  try {
    await Promise.all(
      Object.entries(TSKD.files).map(async ([path, integrity]) => {
        const response = await fetch(path, { integrity, cache: "no-cache" });
        if (!response.ok) throw new Error(`${path}: ${response.status}`);
        await cache.put(path, guarded(response));
      }),
    );
  } catch (error) {
    await caches.delete(CACHE);
    throw error;
  }
}

// Said in a header, the policy binds the worker's script too, which the page's own does not.
function guarded(response) {
  const headers = new Headers(response.headers);
  headers.set("Content-Security-Policy", TSKD.policy);
  return new Response(response.body, { status: response.status, headers });
}

async function dropOlder() {
  const names = (await caches.keys()).filter((name) => name.startsWith(MINE) && name !== CACHE);
  await Promise.all(names.map((name) => caches.delete(name)));
}

async function answer(request) {
  const cache = await caches.open(CACHE);
  const isFolder = request.url.split(/[?#]/)[0] === registration.scope;
  const kept = await cache.match(isFolder ? "index.html" : request, { ignoreSearch: true, ignoreVary: true });
  return kept ?? fetch(request);
}
