// What views ask of the frame around them; app.js fills it in.
export const frame = { go: null, redraw: null };

// Change the parameters of this view's address, in place.
export const go = (parameters, options) => frame.go(parameters, options);

// Draw again what is there, after a choice in the view.
export const redraw = () => frame.redraw();
