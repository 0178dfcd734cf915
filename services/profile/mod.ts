export { type ProfileAnswer, profileFile, readProfileAnswer } from './profile_file.ts';
