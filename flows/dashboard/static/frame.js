// What views ask of the frame around them; app.js fills it in.
export const frame = { go: null, redraw: null };

// Change the parameters of this view's address, in place.
export const go = (parameters, options) => frame.go(parameters, options);

// Whether a run can change any moment.
export const running = (run) => run.state === "running";

export const finished = (step) => ["done", "cached"].includes(step.state);

// Draw again what is there, after a choice in the view.
export const redraw = () => frame.redraw();
