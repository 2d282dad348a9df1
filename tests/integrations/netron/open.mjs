// Opens a file with netron's own parser and prints its nodes: node open.mjs FOLDER_OF_NETRON FILE
import * as fs from 'fs';
import * as path from 'path';
import * as url from 'url';

const [, , folder, file] = process.argv;
const part = (name) => import(url.pathToFileURL(path.join(folder, `${name}.js`)).href);
const base = await part('base');
const view = await part('view');

class Host {
    environment() { return null; }
    event() {}
    message() {}
    exception(error, fatal) { if (fatal) { throw error; } }
    async require(id) { return part(id.replace('./', '')); }
    async asset(name) { return fs.readFileSync(path.join(folder, name), 'utf-8'); }
}

class Context {
    constructor() {
        this.host = new Host();
        this.identifier = path.basename(file);
        this.stream = new base.BinaryStream(new Uint8Array(fs.readFileSync(file)));
        this.entries = new Map();
        this.locale = 'en';
    }
    async require(id) { return this.host.require(id); }
    async asset(name) { return this.host.asset(name); }
    error(error, fatal) { this.host.exception(error, fatal); }
}

const model = await new view.ModelFactoryService(new Host()).open(new Context());
const nodes = model.modules.flatMap((graph) => graph.nodes.map((node) => ({
    name: node.name,
    type: node.type.name,
    metadata: Object.fromEntries((node.metadata || []).map((item) => [item.name, item.value])),
})));
console.log(JSON.stringify({ format: model.format, nodes }));
