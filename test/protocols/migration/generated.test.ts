import test from 'ava';
import { generateProtocol, PROTOCOL_SCHEMAS, readGenerated } from '../../../scripts/build_protocols.ts';

for (const { schema, module } of PROTOCOL_SCHEMAS) {
  test(`${module} is what scripts/build_protocols.ts makes from ${schema}`, async (t) => {
    const committed = await readGenerated(module);
    t.true((await generateProtocol(schema)) === committed, `run: node scripts/build_protocols.ts`);
    t.notRegex(committed, /new Function|\beval\b/);
  });
}
