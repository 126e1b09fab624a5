/* card.h - what cards say of themselves, for people and for run.json.
 * For:    cli/cmd_*.c.  Enter: cli/.
 * Owns:   cli_watch_card() gives a watch (card_watch_close()).
 * Fails:  cli_note_card() with TPL_E_IO; a machine without NVML or without cards is no failure. */
#ifndef TPL_CLI_CARD_H
#define TPL_CLI_CARD_H

#include "device/card_watch.h"
#include "device/gpu.h"
#include "results/run_dir.h"

/* One line a card that NVML sees, on stdout; nothing without any. */
void cli_print_cards(void);
/* NULL, after a note, where NVML does not know the card: then no sample is thrown away as throttled. */
card_watch *cli_watch_card(const gpu_facts *card);
/* Facts "card.driver", "card.clocks_mhz", ... of the moment; watch NULL: "card.nvml" says that there is none. */
tpl_code cli_note_card(run_dir *rd, const card_watch *watch, tpl_err *e);

#endif
