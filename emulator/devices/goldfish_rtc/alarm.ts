import { waitForWord } from '../shared/mod.ts';
import { GoldfishRtc } from './device.ts';

/** Lets the alarm ring on time: one on the host's thread. Sleeps until an alarm is armed, then until it is due. */
export class RtcAlarm {
  readonly #rtc: GoldfishRtc;
  #closed = false;

  constructor(rtc: GoldfishRtc) {
    this.#rtc = rtc;
    void this.#watch();
  }

  close(): void {
    this.#closed = true;
    Atomics.add(this.#rtc.words, GoldfishRtc.NOTIFY_WORD, 1);
    Atomics.notify(this.#rtc.words, GoldfishRtc.NOTIFY_WORD);
  }

  async #watch(): Promise<void> {
    const { words } = this.#rtc;
    while (!this.#closed) {
      const seen = Atomics.load(words, GoldfishRtc.NOTIFY_WORD);
      const left = this.#rtc.checkAlarm();
      await waitForWord(words, GoldfishRtc.NOTIFY_WORD, seen, left);
    }
  }
}
