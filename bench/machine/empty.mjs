// What any program on Node costs before it does anything.
import process from 'node:process';

process.stdout.write('.');
setInterval(() => {}, 1000);
