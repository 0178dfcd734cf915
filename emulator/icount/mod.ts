export { instructionParts } from './parts.ts';
export { InstructionRunner } from './runner.ts';
export { InstructionState } from './state.ts';
