// The site's own search, as a browser's worker runs it: node search_worker.js SITE '["phrase", ...]'
// prints the locations of the first result of each phrase as a JSON list.
const fs = require("fs");
const path = require("path");
const vm = require("vm");

const [site, phrases] = [process.argv[2], JSON.parse(process.argv[3])];
const folder = path.join(site, "assets/javascripts/workers");
const worker = fs.readdirSync(folder).find((name) => /^search.*\.js$/.test(name));
const { config, docs } = JSON.parse(fs.readFileSync(path.join(site, "search/search_index.json")));
const handlers = [];
let answer = null;
const world = vm.createContext({
  addEventListener: (_, handler) => handlers.push(handler),
  postMessage: (message) => { answer = message; },
  importScripts: (...scripts) => {
    for (const name of scripts) {
      vm.runInContext(fs.readFileSync(path.join(folder, name), "utf8"), world);
    }
  },
  console, performance, setTimeout, URL, location: { href: "http://localhost/" },
});
world.self = world.window = world;
vm.runInContext(fs.readFileSync(path.join(folder, worker), "utf8"), world);
const send = async (message) => {
  for (const handler of handlers) await handler({ data: message });
  return answer;
};

(async () => {
  await send({ type: 0, data: { config, docs, options: { suggest: true } } });
  const best = [];
  for (const phrase of phrases) {
    const groups = (await send({ type: 2, data: phrase })).data.items;
    best.push(groups.length ? groups[0][0].location : "");
  }
  console.log(JSON.stringify(best));
})();
